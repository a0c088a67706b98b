"""What files have around a tokenizer's tensors, and what no tensor tells: chosen and said, or refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from vqgan.foreign.formats import import_checkpoint
from vqgan.foreign.reading import ForeignCheckpointError
from vqgan.foreign.taming import from_taming, to_taming
from vqgan.image_tokenizer import ImageTokenizer
from vqgan.models.cnn_vqgan import CNNVQGAN, CNNVQGANConfig
from vqgan.quantizers import NearestConfig

State = dict[str, Tensor]


def network(seed: int = 0, **changes: Any) -> CNNVQGAN:
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {"image_size": 32, "base_channels": 32, "channel_multipliers": (1, 2), "residual_blocks": 1}
    sizes |= {"attention_resolutions": (16,), "latent_channels": 16} | changes
    return CNNVQGAN(
        CNNVQGANConfig(quantizer=NearestConfig(codebook_size=64, code_dim=16, l2_normalize=False), **sizes)
    ).eval()


def with_front(front: str) -> Callable[[State, State], Any]:
    return lambda state, _: {"state_dict": {front + name: tensor for name, tensor in state.items()}}


def averages_of(state: State) -> State:
    counters = {"model_ema.decay": torch.tensor(0.99), "model_ema.num_updates": torch.tensor(5)}
    return counters | {f"model_ema.{name.replace('.', '')}": tensor for name, tensor in state.items()}


def whole_latent_diffusion(state: State, other: State) -> Any:
    """Its first stage is one part of it; `model_ema` there is of the diffusion model."""
    found = {f"first_stage_model.{name}": tensor for name, tensor in state.items()}
    found |= {f"model.diffusion_model.{name}": tensor for name, tensor in other.items()}
    return {"state_dict": found | {"model_ema.diffusion_modelx": torch.zeros(3), "betas": torch.zeros(4)}}


WRAPPED: dict[str, tuple[Callable[[State, State], Any], str]] = {
    "module.": (with_front("module."), "under module are read"),
    "_orig_mod.module.": (with_front("_orig_mod.module."), "under _orig_mod.module are read"),
    "gen_vision_model.": (with_front("gen_vision_model."), "under gen_vision_model are read"),
    "nested": (lambda state, _: {"epoch": 3, "state_dict": {"state_dict": {"model": state}}}, "read from the file's"),
    "averages as a section": (lambda state, other: {"model": other, "ema": state}, "read from the file's ema"),
    "averages of latent diffusion": (
        lambda state, other: {"state_dict": other | averages_of(state)},
        "the averages of the weights (model_ema) are read",
    ),
    "averages that lack a tensor": (
        lambda state, other: {"state_dict": state | dict(list(averages_of(other).items())[:-1])},
        "the weights are read, not their",
    ),
    "averages behind a front": (
        lambda state, other: {f"module.{name}": value for name, value in (other | averages_of(state)).items()},
        "the averages of the weights (model_ema) are read",
    ),
}


def imported(content: Any, config: dict[str, Any] | None, folder: Path) -> tuple[ImageTokenizer, str]:
    torch.save(content, folder / "x.ckpt")
    if config is not None:
        (folder / "x.yaml").write_text(yaml.safe_dump(config))
    said: list[str] = []
    tokenizer = import_checkpoint(
        "taming",
        folder / "x.ckpt",
        folder / "x.yaml" if config is not None else None,
        folder / "out",
        None if config is not None else 32,
        said.append,
    )
    return tokenizer, "\n".join(said)


@pytest.mark.parametrize("kind", WRAPPED)
def test_a_tokenizer_is_found_in_what_is_around_it(kind: str, tmp_path: Path) -> None:
    wrap, note = WRAPPED[kind]
    model = network()
    state, config = to_taming(model)
    other, _ = to_taming(network(seed=1))
    tokenizer, said = imported(wrap(state, other), config, tmp_path)
    assert note in said
    own = tokenizer.autoencoder.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in model.state_dict().items())


def test_the_first_stage_of_latent_diffusion_is_one_part_of_it(tmp_path: Path) -> None:
    state, config = to_taming(network())
    content = whole_latent_diffusion(state, {"input_blocks.0.weight": torch.zeros(2)})
    tokenizer, said = imported(content, config, tmp_path)
    assert "under first_stage_model are read" in said
    assert torch.equal(tokenizer.autoencoder.state_dict()["quantizer.codebook"], state["quantize.embedding.weight"])


def test_two_tokenizers_in_a_file_are_not_guessed_between(tmp_path: Path) -> None:
    state, config = to_taming(network())
    both = {f"{front}.{name}": tensor for front in ("one", "two") for name, tensor in state.items()}
    with pytest.raises(ForeignCheckpointError, match=r"holds 2 tokenizers, under one\., two\."):
        imported(both, config, tmp_path)


def test_a_middle_without_attention(tmp_path: Path) -> None:
    """Latent diffusion's vq-f4-noattn."""
    model = network(middle_attention=False, attention_resolutions=())
    donor, config = to_taming(network(attention_resolutions=()))
    state = {name: tensor for name, tensor in donor.items() if ".attn" not in name}
    model.load_state_dict(from_taming(state, config).state_dict())
    config["model"]["params"]["ddconfig"]["attn_type"] = "none"
    config["model"]["target"] = "ldm.models.autoencoder.VQModelInterface"
    tokenizer, _ = imported({"state_dict": state}, config, tmp_path)
    assert tokenizer.autoencoder.config.middle_attention is False  # type: ignore[attr-defined]
    images = torch.rand(1, 3, 32, 32) * 2 - 1
    assert torch.equal(tokenizer.encode(images), ImageTokenizer(model).encode(images))
    with pytest.raises(ForeignCheckpointError, match="middle_attention is off"):
        to_taming(model)


def test_what_may_be_ibqs_is_refused(tmp_path: Path) -> None:
    state, config = to_taming(network(residual_blocks=4))
    with pytest.raises(ForeignCheckpointError, match="4 residual blocks a level, as IBQ's"):
        imported({"state_dict": state}, None, tmp_path)
    config["model"]["target"] = "src.IBQ.models.ibqgan.IBQ"
    with pytest.raises(ForeignCheckpointError, match="looks codes up in a way of its own"):
        imported({"state_dict": state}, config, tmp_path)
    config["model"]["target"] = "taming.models.vqgan.VQModel"
    assert imported({"state_dict": state}, config, tmp_path)[0].vocab_size == 64


def test_what_is_assumed_without_a_yaml_is_said(tmp_path: Path) -> None:
    state, _ = to_taming(network())
    assert "assumed without a YAML: trained at 32 pixels" in imported({"state_dict": state}, None, tmp_path)[1]


@pytest.mark.parametrize("use_norm", [True, False])
def test_an_enhancing_model_needs_its_yaml(use_norm: bool, tmp_path: Path) -> None:
    """The tensors are the same, and every image of the wrong one would be wrong."""
    from tests.vqgan.foreign.test_enhancing import PARAMS, foreign_state

    torch.save({"state_dict": foreign_state()}, tmp_path / "x.ckpt")
    with pytest.raises(ForeignCheckpointError, match="needs the YAML that belongs to it"):
        import_checkpoint("enhancing", tmp_path / "x.ckpt", None, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    params = PARAMS | {"quantizer": PARAMS["quantizer"] | {"use_norm": use_norm}}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump({"model": {"params": params}}), encoding="utf-8")
    read = import_checkpoint("enhancing", tmp_path / "x.ckpt", tmp_path / "x.yaml", tmp_path / "out")
    assert read.autoencoder.config.model_dump()["quantizer"]["l2_normalize"] is use_norm
