"""The shipped configs of progressive text-to-image generation, and its start from the pretraining task's weights."""

from pathlib import Path

import pytest
import torch

from parti.fused.synthesis.discriminators import Discriminators
from parti.fused.synthesis.generator import SynthesisConfig, SynthesisGenerator
from parti.fused.synthesis.train_synthesis import TrainSynthesisConfig
from parti.fused.text_side import TextSpace
from parti.fused.transfer import load_shared_rows
from parti.fused.trunk import Trunk
from tests.parti.fused.synthesis.tiny_synthesis import MODEL, TOKENS, TRUNK, tiny_generator
from vqgan.config.schema import dump_config, load_config
from vqgan.hub.model_folder import save_model_folder

CONFIGS = sorted((Path(__file__).parents[4] / "configs" / "parti").glob("fused_synthesis*.yaml"))


def test_there_is_one_as_generated_and_one_for_a_cpu() -> None:
    assert [path.name for path in CONFIGS] == ["fused_synthesis.yaml", "fused_synthesis_shapes.yaml"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_networks_fit_the_images(path: Path, tmp_path: Path) -> None:
    config = load_config(TrainSynthesisConfig, path)
    (tmp_path / "again.yaml").write_text(dump_config(config))
    assert load_config(TrainSynthesisConfig, tmp_path / "again.yaml") == config
    text = config.model.trunk.text.model_copy(update={"bert": None})
    trunk = config.model.trunk.model_copy(update={"text": text})
    model = config.model.model_copy(update={"trunk": trunk})
    tokens = TextSpace(500, config.text.length, 498, 499)
    with torch.device("meta"):
        generator = SynthesisGenerator(model, tokens)
        discriminators = Discriminators(config.discriminators, text, tokens, model.sides, matching=True)
        ids = torch.zeros(2, config.text.length, dtype=torch.int64)
        images = generator(ids, torch.zeros(2, *model.noise_shape))
        opinions = discriminators(images, ids, wrong=True)
    assert [image.shape[-1] for image in images] == list(model.sides)
    assert model.sides[-1] == config.data.transform.image_size
    assert all(one.wrong is not None and one.wrong.shape == (2,) for one in opinions.scales)


def test_the_large_config_is_the_drawing() -> None:
    config = load_config(TrainSynthesisConfig, CONFIGS[0])
    bert = config.model.trunk.text.bert
    assert bert is not None
    generated = SynthesisConfig().model_dump()
    generated["trunk"]["text"]["bert"] = bert
    assert config.model.model_dump() == generated
    assert load_config(TrainSynthesisConfig, CONFIGS[1]).model.sides == (16, 32, 64)


def test_a_start_from_the_pretraining_task_takes_the_rows_that_both_have(tmp_path: Path) -> None:
    torch.manual_seed(1)
    trunk = Trunk(TRUNK, TOKENS)
    save_model_folder(tmp_path, {"kind": "fused_inpainting"}, {f"trunk.{k}": v for k, v in trunk.state_dict().items()})
    generator = tiny_generator(MODEL)
    taken = load_shared_rows(generator, tmp_path)
    assert {name for name, _ in generator.named_parameters() if name.startswith("parts.")} - set(taken) == {
        name for name, _ in generator.named_parameters() if name.startswith("parts.fusions.12.")
    }
    rows = {
        part: {name.split(".")[2] for name in taken if name.startswith(f"parts.{part}.")} for part in ("image", "text")
    }
    assert rows == {"image": {"4", "11", "12"}, "text": {"1", "2", "3", "4", "11"}}
    theirs = trunk.parts.state_dict()
    assert all(torch.equal(generator.state_dict()[name], theirs[name.removeprefix("parts.")]) for name in taken)
