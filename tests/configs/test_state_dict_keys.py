"""State-dict keys and shapes of every shipped config's networks are frozen: renamed code still reads old weights."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import nn

from parti.next_token.train_next_token import TrainPartiConfig
from parti.objectives import choose_objective
from parti.planning.generator import generator_without_weights, tokens_of
from parti.planning.generator_plan import tokenizer_config
from parti.planning.objective import build_play
from vqgan.config.schema import load_config
from vqgan.models.discriminator import build_discriminator
from vqgan.planning.step_recorder import fake_step
from vqgan.planning.tokenizer import tokenizer_without_weights
from vqgan.train_tokenizer import TrainVQGANConfig

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(path for path in (ROOT / "configs").rglob("*.yaml") if path.parent.name != "accelerate")
FROZEN = Path(__file__).with_name("state_dict_keys.json")
"""By config and network: the number of tensors, and a hash of their names and shapes. A change here breaks weights."""


def networks(path: Path) -> Mapping[str, nn.Module]:
    config = load_config(choose_objective(path).config_type, path)
    if isinstance(config, TrainVQGANConfig):
        with fake_step("cpu"):
            found: dict[str, nn.Module] = {"autoencoder": tokenizer_without_weights(config).autoencoder}
        if config.task.adversarial.weight:
            with torch.device("meta"):
                found["discriminator"] = build_discriminator(
                    config.task.adversarial.discriminator, config.model.image_size
                )
        return found
    if isinstance(config, TrainPartiConfig):
        with fake_step("cpu"):
            tokens = tokens_of(config, tokenizer_without_weights(tokenizer_config(config, path, None)))
        return {"generator": generator_without_weights(config, tokens)}
    tokenizer = load_config(TrainVQGANConfig, ROOT / "configs" / "vqgan" / "shapes.yaml")
    with fake_step("cpu"):
        return build_play(config, tokenizer).trained


def keys_of(network: nn.Module) -> list[object]:
    rows = sorted(f"{name} {tuple(tensor.shape)}" for name, tensor in network.state_dict().items())
    return [len(rows), hashlib.sha256("\n".join(rows).encode()).hexdigest()]


def described(path: Path) -> dict[str, list[object]]:
    return {name: keys_of(network) for name, network in networks(path).items()}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_the_keys_are_those_of_earlier_releases(path: Path) -> None:
    frozen = json.loads(FROZEN.read_text())
    assert described(path) == frozen[f"{path.parent.name}/{path.stem}"]
