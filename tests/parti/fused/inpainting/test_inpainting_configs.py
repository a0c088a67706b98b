"""The shipped configs of the pretraining task load, fit themselves, and build the networks that they promise."""

from pathlib import Path

import pytest
import torch

from parti.fused.inpainting.network import InpaintingNetwork
from parti.fused.inpainting.train_inpainting import TrainInpaintingConfig
from parti.fused.text_side import TextSpace
from parti.objectives import OBJECTIVES, choose_objective
from vqgan.config.schema import dump_config, load_config
from vqgan.models.discriminator import build_discriminator

CONFIGS = sorted((Path(__file__).parents[4] / "configs" / "parti").glob("fused_inpainting*.yaml"))


def test_there_are_configs() -> None:
    assert [path.name for path in CONFIGS] == ["fused_inpainting.yaml", "fused_inpainting_shapes.yaml"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_fits_itself(path: Path, tmp_path: Path) -> None:
    assert choose_objective(path) == OBJECTIVES["fused_inpainting"]
    config = load_config(TrainInpaintingConfig, path)
    # Sizes alone: nothing is fetched for a test.
    trunk = config.model.model_copy(update={"text": config.model.text.model_copy(update={"bert": None})})
    length = getattr(config.text, "length", 0)
    with torch.device("meta"):
        model = InpaintingNetwork(trunk, TextSpace(1000, length, 0, 999))
        images = torch.zeros(2, 3, trunk.image_size, trunk.image_size)
        generated, states = model.trunk(images, torch.zeros(2, length, dtype=torch.int64))
        assert generated.shape == images.shape
        assert states.shape == (2, length, trunk.text.width)
        if config.task.adversarial.weight:
            discriminator = build_discriminator(config.task.adversarial.discriminator, trunk.image_size)
            assert len(discriminator(images)) == 2
    (tmp_path / "again.yaml").write_text(dump_config(config))
    assert load_config(TrainInpaintingConfig, tmp_path / "again.yaml") == config
