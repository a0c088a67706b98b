"""Every format from the file to the model folder and back: the same codes and images, or one clear line."""

import re
import subprocess
import sys
import tarfile
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn

from vqgan import load_tokenizer
from vqgan.config.schema import ConfigError
from vqgan.foreign.formats import IMPORTS, export_checkpoint, import_checkpoint
from vqgan.foreign.reading import ForeignCheckpointError, read_tensors
from vqgan.foreign.taming import to_taming
from vqgan.hub.model_folder import CONFIG_FILE, WEIGHTS_FILE
from vqgan.image_tokenizer import ImageTokenizer
from vqgan.models import Autoencoder, build_autoencoder
from vqgan.models.cnn_vqgan import CNNVQGANConfig
from vqgan.models.dvae import DVAEConfig
from vqgan.models.enhancing_vit import EnhancingStackConfig, EnhancingViTVQGANConfig
from vqgan.quantizers import GumbelConfig, NearestConfig

CNN = CNNVQGANConfig(
    image_size=16,
    base_channels=32,
    channel_multipliers=(1, 2),
    residual_blocks=1,
    attention_resolutions=(8,),
    latent_channels=8,
    quantizer=NearestConfig(codebook_size=20, code_dim=6, l2_normalize=False),
)
STACK = EnhancingStackConfig(depth=1, width=16, heads=1, mlp_width=12)
ENHANCING = EnhancingViTVQGANConfig(
    image_size=16,
    patch_size=4,
    encoder=STACK,
    decoder=STACK,
    quantizer=NearestConfig(codebook_size=20, code_dim=6),
)
DVAE = DVAEConfig(
    hidden=8, blocks_per_group=1, decoder_width=6, quantizer=GumbelConfig(codebook_size=20, latent_dim=64, code_dim=6)
)


def build(config: Any) -> Autoencoder:
    torch.manual_seed(0)
    return build_autoencoder(config).eval()


def taming_file(folder: Path) -> tuple[Autoencoder, Path]:
    model = build(CNN)
    state, config = to_taming(model)
    loss = {"loss.discriminator.main.0.weight": torch.ones(3)}
    optimizer = [{"state": {0: {"exp_avg": torch.ones(4)}}, "param_groups": [{"lr": 4.5e-6}]}]
    torch.save({"state_dict": state | loss, "optimizer_states": optimizer, "epoch": 3}, folder / "last.ckpt")
    (folder / "project.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return model, folder / "last.ckpt"


def llamagen_file(folder: Path, section: str = "ema") -> tuple[Autoencoder, Path]:
    """Attention at the lowest resolution; names and the decoder's order as LlamaGen has them."""
    model = build(CNN.model_copy(update={"quantizer": NearestConfig(codebook_size=20, code_dim=6)}))
    plain = build(CNN)
    plain.load_state_dict(model.state_dict())  # taming has no l2-normalized codes: the names are all that is wanted
    state = {}
    for name, tensor in to_taming(plain)[0].items():
        if found := re.match(r"decoder\.up\.(\d)", name):
            name = name.replace(found[0], f"decoder.conv_blocks.{1 - int(found[1])}")
        name = re.sub(r"encoder\.down\.", "encoder.conv_blocks.", name)
        name = re.sub(r"(conv_blocks\.\d\.)block", r"\1res", name)
        for index, middle in enumerate(("block_1", "attn_1", "block_2")):
            name = name.replace(f"mid.{middle}", f"mid.{index}")
        state[name] = tensor
    state["quantize.codebook_used"] = torch.zeros(65536)
    other = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    sections = {"model": state if section == "model" else other, "optimizer": {"state": {}}, "steps": 7}
    torch.save(sections if section == "model" else sections | {"ema": state}, folder / "vq.pt")
    return model, folder / "vq.pt"


def enhancing_file(folder: Path) -> tuple[Autoencoder, Path]:
    from vqgan.foreign.enhancing import _their_name

    model = build(ENHANCING)
    state = {_their_name(name): tensor for name, tensor in model.state_dict().items()}
    for name in ("encoder.en_pos_embedding", "decoder.de_pos_embedding"):
        state[name] = state[name][None]
    torch.save({"state_dict": state, "hyper_parameters": {"image_key": "image"}}, folder / "vit.ckpt")
    params: dict[str, Any] = {"encoder": {}, "decoder": {}, "quantizer": {"use_norm": True}}
    (folder / "vit.yaml").write_text(yaml.safe_dump({"model": {"params": params}}), encoding="utf-8")
    return model, folder / "vit.ckpt"


def openai_files(folder: Path) -> tuple[Autoencoder, Path]:
    """encoder.pkl and decoder.pkl, each a pickled module of a package that is not there when it is read."""
    from vqgan.foreign.openai_dvae import _their_name

    model = build(DVAE)
    state = dict(model.state_dict())
    state["quantizer.proj.weight"] = state["quantizer.proj.weight"][..., None, None]
    state["quantizer.codebook"] = state["quantizer.codebook"].T[..., None, None]
    names = ("dall_e", "dall_e.encoder", "dall_e.decoder")
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setitem(sys.modules, name, types.ModuleType(name))
        for side in ("encoder", "decoder"):
            kind = type(side.title(), (nn.Module,), {"__module__": f"dall_e.{side}"})
            setattr(sys.modules[f"dall_e.{side}"], side.title(), kind)
            root = kind()
            for name, tensor in state.items():
                theirs = _their_name(name)
                if theirs.startswith(f"{side}."):
                    *path, leaf = theirs.split(".")[1:]
                    module = root
                    for part in path:
                        if part not in module._modules:
                            module.add_module(part, nn.Module())
                        module = module._modules[part]
                    module.register_parameter(leaf, nn.Parameter(tensor))
            torch.save(root, folder / f"{side}.pkl")
    return model, folder


def mindalle_file(folder: Path) -> tuple[Autoencoder, Path]:
    model = build(CNN)
    torch.save({"state_dict": to_taming(model)[0]}, folder / "stage1_last.ckpt")
    (folder / "config.yaml").write_text("stage1: {type: vqgan}", encoding="utf-8")
    with tarfile.open(folder / "1.3B.tar.gz", "w:gz") as tar:
        for name in ("config.yaml", "stage1_last.ckpt"):
            tar.add(folder / name, f"1.3B/{name}")
    return model, folder / "1.3B.tar.gz"


FILES: dict[str, tuple[Callable[[Path], tuple[Autoencoder, Path]], str | None, int | None]] = {
    "taming": (taming_file, "project.yaml", None),
    "llamagen": (llamagen_file, None, 16),
    "enhancing": (enhancing_file, "vit.yaml", None),
    "openai-dvae": (openai_files, None, None),
    "mindalle": (mindalle_file, None, 16),
}


@pytest.mark.parametrize("format", IMPORTS)
def test_a_file_becomes_a_folder_that_translates_as_the_model_does(format: str, tmp_path: Path) -> None:
    write, config, image_size = FILES[format]
    model, checkpoint = write(tmp_path)
    out = tmp_path / "tokenizers" / "new"
    imported = import_checkpoint(format, checkpoint, tmp_path / config if config else None, out, image_size)
    assert sorted(path.name for path in out.iterdir()) == ["SHA256SUMS", CONFIG_FILE, WEIGHTS_FILE]

    expected, loaded = ImageTokenizer(model), load_tokenizer(out)
    assert loaded.image_size == imported.image_size == model.image_size
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(1, 3, 16, 16, generator=generator) * 2 - 1
    codes = expected.autoencoder.quantizer.encode(model.encode(images))
    assert torch.equal(loaded.autoencoder.quantizer.encode(loaded.autoencoder.encode(images)), codes)
    latents, grid = model.quantizer.embed(codes), model.grid_of(*images.shape[-2:])
    with torch.no_grad():
        assert torch.equal(loaded.autoencoder.decode(latents, grid).images, model.decode(latents, grid).images)


def test_llamagen_without_an_average_gives_its_model(tmp_path: Path) -> None:
    model, checkpoint = llamagen_file(tmp_path, "model")
    imported = import_checkpoint("llamagen", checkpoint, None, tmp_path / "out", 16)
    assert torch.equal(imported.autoencoder.quantizer.codebook, model.quantizer.codebook)


def test_bare_safetensors_and_a_resolution_instead_of_a_yaml(tmp_path: Path) -> None:
    model = build(CNN)
    save_file(to_taming(model)[0], tmp_path / "weights.safetensors")
    imported = import_checkpoint("taming", tmp_path / "weights.safetensors", None, tmp_path / "out", 16)
    assert imported.image_size == 16
    assert imported.autoencoder.config == model.config


def test_an_unpacked_mindalle_and_one_half_of_openais_files(tmp_path: Path) -> None:
    mindalle_file(tmp_path)
    checkpoint = tmp_path / "stage1_last.ckpt"
    assert import_checkpoint("mindalle", checkpoint, None, tmp_path / "a", 64).image_size == 64
    openai_files(tmp_path)
    assert import_checkpoint("openai-dvae", tmp_path / "decoder.pkl", None, tmp_path / "b").vocab_size == 20


def test_half_precision_weights_become_full(tmp_path: Path) -> None:
    state = {name: tensor.half() for name, tensor in to_taming(build(CNN))[0].items()}
    torch.save({"state_dict": state}, tmp_path / "half.ckpt")
    imported = import_checkpoint("taming", tmp_path / "half.ckpt", None, tmp_path / "out", 16)
    assert all(parameter.dtype is torch.float32 for parameter in imported.parameters())
    assert torch.equal(imported.autoencoder.quantizer.codebook, state["quantize.embedding.weight"].float())


def test_export_and_import_give_the_same_to_the_bit(tmp_path: Path) -> None:
    tokenizer = ImageTokenizer(build(CNN))
    config = export_checkpoint("taming", tokenizer, tmp_path / "new" / "exported.ckpt")
    assert config == tmp_path / "new" / "exported.yaml"
    content = torch.load(tmp_path / "new" / "exported.ckpt", weights_only=True)
    assert content.keys() == {"state_dict"}
    assert content["state_dict"].keys() == read_tensors(tmp_path / "new" / "exported.ckpt")["state_dict"].keys()
    assert yaml.safe_load(config.read_text(encoding="utf-8"))["model"]["params"]["ddconfig"]["ch_mult"] == [1, 2]

    back = import_checkpoint("taming", tmp_path / "new" / "exported.ckpt", config, tmp_path / "back")
    assert back.autoencoder.config == tokenizer.autoencoder.config
    for name, tensor in tokenizer.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name


def test_export_overwrites_nothing_and_says_what_taming_lacks(tmp_path: Path) -> None:
    tokenizer = ImageTokenizer(build(CNN))
    (tmp_path / "a.yaml").write_text("mine", encoding="utf-8")
    for name in ("a.ckpt", "a.yaml", "b.yaml"):
        with pytest.raises(ForeignCheckpointError, match="is there already, or is where the YAML goes"):
            export_checkpoint("taming", tokenizer, tmp_path / name)
    with pytest.raises(ForeignCheckpointError, match="convolutional VQGANs only, received a EnhancingViTVQGAN"):
        export_checkpoint("taming", ImageTokenizer(build(ENHANCING)), tmp_path / "c.ckpt")
    assert [path.name for path in tmp_path.iterdir()] == ["a.yaml"]


def save(content: Any, folder: Path) -> Path:
    torch.save(content, folder / "file.ckpt")
    return folder / "file.ckpt"


@pytest.mark.parametrize(
    ("format", "content", "message"),
    [
        (
            "taming",
            {"optimizer": 1, "weights": {"a": 2}, "step": 3},
            "no tensors under state_dict; it holds weights, step",
        ),
        ("taming", {"state_dict": {"a": torch.ones(2)}}, "a VQGAN of taming-transformers has a tensor"),
        ("llamagen", {"model": {"a": torch.ones(2)}}, "a VQGAN of LlamaGen has a tensor quantize.embedding.weight"),
        ("enhancing", {"state_dict": {"a": torch.ones(2)}}, "a ViT-VQGAN of enhancing-transformers has a tensor"),
        ("enhancing", {}, "no tensors under state_dict; it holds nothing"),
        ("openai-dvae", {"a": torch.ones(2)}, "encoder.pkl cannot be read: No such file or directory"),
        ("mindalle", {"state_dict": {}}, "no tensors under state_dict; it holds state_dict"),
    ],
)
def test_another_layout_is_one_line(format: str, content: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ForeignCheckpointError, match=re.escape(message)) as error:
        import_checkpoint(format, save(content, tmp_path), None, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_options_that_contradict_the_file(tmp_path: Path) -> None:
    _, checkpoint = taming_file(tmp_path)
    config, out = tmp_path / "project.yaml", tmp_path / "out"
    with pytest.raises(ForeignCheckpointError, match="resolution of this file is known: the YAML says it; leave out"):
        import_checkpoint("taming", checkpoint, config, out, 16)
    for format in ("llamagen", "openai-dvae", "mindalle"):
        with pytest.raises(ForeignCheckpointError, match="needs no config"):
            import_checkpoint(format, checkpoint, config, out)
    for format in ("enhancing", "openai-dvae"):
        with pytest.raises(ForeignCheckpointError, match="leave out --image-size"):
            import_checkpoint(format, checkpoint, None, out, 256)
    for size in (-16, 0, 15):
        with pytest.raises(ForeignCheckpointError, match=r"pixels|image_size"):
            import_checkpoint("taming", checkpoint, None, out, size)
    with pytest.raises(ConfigError, match="cannot be read"):
        import_checkpoint("taming", checkpoint, tmp_path / "nowhere.yaml", out)
    assert not out.exists()


def test_no_model_folder_is_overwritten(tmp_path: Path) -> None:
    _, checkpoint = taming_file(tmp_path)
    import_checkpoint("taming", checkpoint, None, tmp_path / "out", 16)
    with pytest.raises(ForeignCheckpointError, match="already holds a model; give another folder"):
        import_checkpoint("taming", checkpoint, None, tmp_path / "out", 16)


def test_unknown_formats_and_places_that_cannot_be_written(tmp_path: Path) -> None:
    model, checkpoint = taming_file(tmp_path)
    with pytest.raises(ForeignCheckpointError, match="there is no format 'flax'; give one of taming, llamagen, "):
        import_checkpoint("flax", checkpoint, None, tmp_path / "out")
    with pytest.raises(ForeignCheckpointError, match="there is no format 'llamagen'; give one of taming"):
        export_checkpoint("llamagen", ImageTokenizer(model), tmp_path / "a.ckpt")
    with pytest.raises(ForeignCheckpointError, match=r"cannot write to .*: Not a directory"):
        import_checkpoint("taming", checkpoint, None, checkpoint / "out", 16)
    with pytest.raises(ForeignCheckpointError, match=r"cannot write to .*: (Not a directory|File exists)"):
        export_checkpoint("taming", ImageTokenizer(model), checkpoint / "a.ckpt")


def test_weights_that_are_not_finite(tmp_path: Path) -> None:
    state: dict[str, Tensor] = to_taming(build(CNN))[0]
    state["decoder.conv_out.bias"] = torch.tensor([1.0, float("inf"), 0.0])
    with pytest.raises(ForeignCheckpointError, match="decode to numbers that are not finite"):
        import_checkpoint("taming", save({"state_dict": state}, tmp_path), None, tmp_path / "out", 16)
    assert not (tmp_path / "out").exists()


def test_importing_the_package_loads_nothing_heavy() -> None:
    program = "import sys, vqgan; vqgan.load_tokenizer; sys.exit('torch' in sys.modules or 'pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_load_tokenizer_takes_run_folders_too(tmp_path: Path) -> None:
    ImageTokenizer(build(ENHANCING)).save_pretrained(tmp_path / "model")
    assert load_tokenizer(tmp_path).grid == load_tokenizer(str(tmp_path / "model")).grid == (4, 4)
