"""Plans of the objectives beside the next token: memory against what the same steps take on this CPU."""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch

from parti.objectives import choose_objective
from parti.planning.generator_plan import tokenizer_config
from parti.planning.objective import blank_pairs, build_play, rehearse_objective
from parti.planning.stand_ins import blank_vocabulary, text_sizes
from parti.text import SavedTokenizerConfig, UnigramConfig
from tests.measured import most_memory
from vqgan.config.schema import ConfigError, load_config
from vqgan.hub.model_folder import ModelFolderError
from vqgan.train_tokenizer import TrainVQGANConfig

SLOW = functools.partial(pytest.param, marks=pytest.mark.slow)
CONFIGS = Path(__file__).parents[3] / "configs"
ALL = sorted(path for path in CONFIGS.rglob("*.yaml") if path.parent.name != "accelerate")


def read(name: str) -> tuple[Any, TrainVQGANConfig | None]:
    """A shipped config, and that of the image tokenizer which it names."""
    path = CONFIGS / name
    config: Any = load_config(choose_objective(path).config_type, path)
    return config, tokenizer_config(config, path, None) if hasattr(config, "image_tokenizer") else None


@pytest.mark.parametrize("path", ALL, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_shipped_config_is_of_a_known_run(path: Path) -> None:
    load_config(choose_objective(path).config_type, path)


@pytest.mark.parametrize(
    ("name", "pairs"),
    [
        ("reranker/shapes.yaml", 4),
        ("mim/mae_shapes.yaml", 4),
        *(SLOW(f"mim/{method}_shapes.yaml", 4) for method in ("simmim", "beit", "mpp")),
        SLOW("text_encoder/shapes.yaml", 8),
        SLOW("upsampler/shapes_2x.yaml", 2),
        SLOW("parti/fused_inpainting_shapes.yaml", 4),
        SLOW("parti/fused_captioning_shapes.yaml", 4),
        SLOW("parti/fused_synthesis_shapes.yaml", 4),
    ],
)
def test_memory_is_that_of_the_same_steps(name: str, pairs: int) -> None:
    config, tokenizer = read(name)

    def steps() -> object:
        torch.manual_seed(0)
        play = build_play(config, tokenizer)
        for step in range(2):
            batches = [blank_pairs(config, pairs) for _ in range(config.loop.gradient_accumulation_steps)]
            for batch in batches:
                batch.images.uniform_(-1, 1)
            assert not play.task.train_step(batches, step)["skipped"]
        return play

    rehearsed = rehearse_objective(config, pairs, "cpu", tokenizer=tokenizer)
    assert rehearsed.footprint.peak().total == pytest.approx(most_memory(steps), rel=0.15)
    assert rehearsed.flops > 0


def test_an_unknown_vocabulary_is_one_line() -> None:
    config, _ = read("parti/fused_captioning.yaml")
    text = config.text.model_copy(update={"name": "somebody/a-bert"})
    with pytest.raises(ConfigError, match="its vocabulary is not in the config; plan with --text"):
        rehearse_objective(config.model_copy(update={"text": text}), 2)


def test_a_saved_vocabulary_is_read_from_its_folder(tmp_path: Path) -> None:
    blank_vocabulary(UnigramConfig(vocab_size=777, length=9)).save_pretrained(tmp_path)
    assert text_sizes(SavedTokenizerConfig(folder=str(tmp_path))) == (777, 9)
    with pytest.raises(ModelFolderError):
        text_sizes(SavedTokenizerConfig(folder=str(tmp_path / "none")))
