"""Every shipped config loads, fits itself, and its networks are built."""

from pathlib import Path

import pytest
import torch

from parti.models import GENERATORS, TokenSpace
from parti.next_token.train_next_token import TrainPartiConfig
from vqgan.config.schema import dump_config, load_config, read_yaml
from vqgan.data.shards.samples import ShardsConfig
from vqgan.models import build_autoencoder
from vqgan.models.discriminator import build_discriminator
from vqgan.train_tokenizer import TrainVQGANConfig

CONFIGS = Path(__file__).parents[2] / "configs"
STAGE_1 = sorted((CONFIGS / "vqgan").glob("*.yaml"))
STAGE_2 = sorted(path for path in (CONFIGS / "parti").glob("*.yaml") if not path.name.startswith("fused_"))
SMALLEST_PERCEPTUAL_IMAGE = 32


def name(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def test_there_are_configs() -> None:
    assert {"shapes.yaml", "openmoji.yaml"} <= {path.name for path in STAGE_1} & {path.name for path in STAGE_2}


@pytest.mark.parametrize("path", STAGE_1, ids=name)
def test_stage_1(path: Path, tmp_path: Path) -> None:
    config = load_config(TrainVQGANConfig, path)
    with torch.device("meta"):
        model = build_autoencoder(config.model)
        images = torch.zeros(2, 3, config.model.image_size, config.model.image_size)
        latents = model.encode(images)
        assert latents.shape[-1] == model.quantizer.latent_dim
        quantized = torch.zeros(2, latents.shape[1], model.quantizer.code_dim)
        assert model.decode(quantized).images.shape == images.shape
        if config.task.adversarial.weight:
            discriminator = build_discriminator(config.task.adversarial.discriminator, config.model.image_size)
            assert len(discriminator(images)) == 2
    if config.task.perceptual.weight:
        assert config.model.image_size >= SMALLEST_PERCEPTUAL_IMAGE
    (tmp_path / "again.yaml").write_text(dump_config(config))
    assert load_config(TrainVQGANConfig, tmp_path / "again.yaml") == config


@pytest.mark.parametrize("path", STAGE_2, ids=name)
def test_stage_2_and_the_stage_1_that_it_stands_on(path: Path, tmp_path: Path) -> None:
    config = load_config(TrainPartiConfig, path)
    stage_1 = {found.run_dir: found for found in (load_config(TrainVQGANConfig, file) for file in STAGE_1)}
    assert config.image_tokenizer in stage_1, "no shipped stage-1 config writes to that folder"
    tokenizer = stage_1[config.image_tokenizer]
    assert config.data.transform.image_size == tokenizer.model.image_size
    if config.data.source.kind in ("shapes", "openmoji", "folder"):
        assert config.data.source == tokenizer.data.source
    else:  # an image tokenizer learns on ImageNet too, which has no captions
        assert config.data.source == ShardsConfig(path="data/pairs")
    side = tokenizer.model.image_size // tokenizer.model.stride
    tokens = TokenSpace(
        text_vocab_size=config.text.vocab_size,
        text_length=config.text.length,
        image_vocab_size=tokenizer.model.quantizer.codebook_size,
        image_grid=(side, side),
    )
    with torch.device("meta"):
        model = GENERATORS[config.model.kind](config.model, tokens)
    assert sum(parameter.numel() for parameter in model.parameters()) > 0
    (tmp_path / "again.yaml").write_text(dump_config(config))
    assert load_config(TrainPartiConfig, tmp_path / "again.yaml") == config


ALL = sorted(path for path in CONFIGS.glob("*/*.yaml") if path.parent.name != "accelerate")


@pytest.mark.parametrize("path", ALL, ids=name)
def test_every_training_config_keeps_the_best_model(path: Path) -> None:
    loop = read_yaml(path)["loop"]
    assert set(loop["keep_best"]) == {"metric", "mode"}
    assert loop["evaluate_every"], "a model is only known to be the best where it is evaluated"
