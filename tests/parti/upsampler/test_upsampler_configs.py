"""Every shipped upsampler config loads, fits the tokenizer that it stands on, and its networks are built."""

from pathlib import Path

import pytest
import torch

from parti.upsampler.train_upsampler import TrainUpsamplerConfig
from parti.upsampler.upsampler import Upsampler
from vqgan.config.schema import dump_config, load_config
from vqgan.models.discriminator import build_discriminator
from vqgan.train_tokenizer import TrainVQGANConfig

CONFIGS = Path(__file__).parents[3] / "configs"
PATHS = sorted((CONFIGS / "upsampler").glob("*.yaml"))


def name(path: Path) -> str:
    return path.name


def test_there_are_configs() -> None:
    assert {"shapes_2x.yaml", "parti_512.yaml"} <= {path.name for path in PATHS}


@pytest.mark.parametrize("path", PATHS, ids=name)
def test_config(path: Path, tmp_path: Path) -> None:
    config = load_config(TrainUpsamplerConfig, path)
    files = (CONFIGS / "vqgan").glob("*.yaml")
    stage_1 = {found.run_dir: found for found in (load_config(TrainVQGANConfig, file) for file in files)}
    assert config.image_tokenizer in stage_1, "no shipped stage-1 config writes to that folder"
    tokenizer = stage_1[config.image_tokenizer]
    large = config.data.transform.image_size
    assert large == config.model.scale * tokenizer.model.image_size
    assert config.data.source == tokenizer.data.source
    with torch.device("meta"):
        Upsampler(config.model)
        discriminator = build_discriminator(config.task.adversarial.discriminator, large)
        assert len(discriminator(torch.zeros(2, 3, large, large))) == 2
    (tmp_path / "again.yaml").write_text(dump_config(config))
    assert load_config(TrainUpsamplerConfig, tmp_path / "again.yaml") == config


def test_parti_512_has_the_papers_network() -> None:
    config = load_config(TrainUpsamplerConfig, CONFIGS / "upsampler" / "parti_512.yaml")
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in Upsampler(config.model).parameters())
    assert round(count / 1e6, 1) == 14.2
    weights = (config.task.l2_weight, config.task.perceptual.weight, config.task.adversarial.weight)
    assert weights == (1.0, 0.1, 0.1), "the tokenizer's own"
