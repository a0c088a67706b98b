"""LoRA: the network computes what it did, only the adapters learn, and merged they are a plain network."""

from pathlib import Path

import pytest
import torch

from parti.layers.lora import LoRAConfig, add_lora, merge_lora, merged_copy, save_lora
from parti.models import DecoderOnly, DecoderOnlyConfig, Generator
from tests.tiny import TOKENS, codes, text_ids, tiny_generator
from vqgan.config.schema import ConfigError
from vqgan.hub.model_folder import ModelFolderError

pytest.importorskip("peft")

CONFIG = LoRAConfig(rank=2, alpha=4)


def decoder_only() -> Generator:
    torch.manual_seed(0)
    model = DecoderOnly(DecoderOnlyConfig(depth=2, width=16, heads=2, mlp_width=32, dropout=0.0), TOKENS)
    torch.nn.init.normal_(model.image_head.weight, std=0.5)
    return model.eval()


def logits(network: Generator) -> torch.Tensor:
    with torch.no_grad():
        return network(text_ids(2), codes(2)).image


def trained(network: Generator) -> Generator:
    """One step that moves every adapter off zero."""
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            assert "lora_" in name
            torch.nn.init.normal_(parameter, std=0.2)
    return network


@pytest.mark.parametrize("build", [tiny_generator, decoder_only])
def test_adapters_begin_as_nothing_learn_alone_and_merge(build: type[Generator]) -> None:
    network = build()
    before = logits(network)
    base = {name: value.clone() for name, value in network.state_dict().items()}
    layers = add_lora(network, CONFIG)
    assert len(layers) > 4
    torch.testing.assert_close(logits(network), before)
    learning = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    assert 0 < learning < sum(value.numel() for value in base.values()) / 2
    after = logits(trained(network))
    assert (after - before).abs().max() > 0.1, "or else merging nothing would do"
    merged = merged_copy(network)
    assert list(merged.state_dict()) == list(base)
    torch.testing.assert_close(logits(merged), after, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits(network), after), "the network in training is as it was"


def test_a_saved_adapter_is_merged_into_its_base_and_no_other(tmp_path: Path) -> None:
    base = tiny_generator()
    network = tiny_generator()
    add_lora(network, CONFIG)
    save_lora(tmp_path / "lora", trained(network), CONFIG)
    torch.testing.assert_close(logits(merge_lora(base, tmp_path / "lora")), logits(network), atol=1e-4, rtol=1e-4)
    sizes = [path.stat().st_size for path in (tmp_path / "lora").iterdir()]
    assert sum(sizes) < sum(value.numel() * 4 for value in base.state_dict().values())
    with pytest.raises(ModelFolderError, match=r"an adapter for '.*', which this network lacks"):
        merge_lora(decoder_only(), tmp_path / "lora")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelFolderError):
        merge_lora(base, tmp_path / "empty")


def test_targets_that_match_nothing_are_one_line() -> None:
    with pytest.raises(ConfigError, match=r"lora\.targets 'nothing' matches none of the \d+ linear layers"):
        add_lora(tiny_generator(), LoRAConfig(targets="nothing"))
