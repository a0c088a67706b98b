"""The shipped configs of Parti's four sizes: exact numbers of parameters (papers.md 0 and D.2), and the recipe
(D.4)."""

from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from parti.models import GENERATORS, EncoderDecoder, EncoderDecoderConfig, TokenSpace
from parti.next_token.train_next_token import TrainPartiConfig
from parti.text.tokenizer import UnigramConfig
from vqgan.config.schedule import learning_rate_factor
from vqgan.config.schema import load_config
from vqgan.data.loader import BatchShard
from vqgan.training.optim.optimizer import hidden_matrices

CONFIGS = Path(__file__).parents[3] / "configs" / "parti"
TEXT_VOCABULARY, TEXT_LENGTH, CODES, GRID = 16_000, 128, 8192, (32, 32)


class Size(NamedTuple):
    """A row of the paper's table 1, and papers.md section 0's millions: all parameters, and the blocks' matrices
    alone."""

    encoder_depth: int
    decoder_depth: int
    width: int
    mlp_width: int
    heads: int
    millions: float
    millions_in_matrices: float


SIZES = {
    "350m": Size(12, 12, 1024, 4096, 16, 387.07, 352.3),
    "750m": Size(12, 36, 1024, 4096, 16, 790.19, 755.0),
    "3b": Size(12, 36, 2048, 8192, 32, 3090.32, 3019.9),
    "20b": Size(16, 64, 4096, 16384, 64, 20544.32, 20401.1),
}


def config_of(name: str) -> TrainPartiConfig:
    return load_config(TrainPartiConfig, CONFIGS / f"parti_{name}.yaml")


def build(name: str) -> EncoderDecoder:
    config = config_of(name)
    assert isinstance(config.text, UnigramConfig)
    tokens = TokenSpace(
        text_vocab_size=config.text.vocab_size,
        text_length=config.text.length,
        image_vocab_size=CODES,
        image_grid=GRID,
    )
    with torch.device("meta"):
        model = GENERATORS[config.model.kind](config.model, tokens)
    assert isinstance(model, EncoderDecoder)
    return model


def all_parameters(size: Size) -> int:
    """papers.md D.2: blocks with biases and norms, embeddings (one row more for the start), head and both last
    norms."""
    d = size.width
    blocks = size.encoder_depth * (12 * d**2 + 13 * d) + size.decoder_depth * (16 * d**2 + 19 * d)
    embeddings = (TEXT_VOCABULARY + TEXT_LENGTH) * d + (CODES + 1 + GRID[0] * GRID[1]) * d
    return blocks + embeddings + (d + 1) * CODES + 4 * d


@pytest.mark.parametrize("name", SIZES)
def test_the_number_of_parameters_is_exact(name: str) -> None:
    size, model = SIZES[name], build(name)
    assert all(parameter.is_meta for parameter in model.parameters())
    total = sum(parameter.numel() for parameter in model.parameters())
    assert total == all_parameters(size)
    assert round(total / 1e6, 2) == size.millions
    in_head = model.head.weight.numel()
    matrices = sum(parameter.numel() for parameter in hidden_matrices(model)) - in_head
    assert matrices == (12 * size.encoder_depth + 16 * size.decoder_depth) * size.width**2
    assert round(matrices / 1e6, 1) == size.millions_in_matrices


def test_the_integers() -> None:
    assert [all_parameters(size) for size in SIZES.values()] == [
        387_068_928,
        790_189_056,
        3_090_319_360,
        20_544_319_488,
    ]


@pytest.mark.parametrize("name", SIZES)
def test_the_sizes_are_the_papers(name: str) -> None:
    size, model = SIZES[name], config_of(name).model
    assert isinstance(model, EncoderDecoderConfig)
    assert (model.encoder_depth, model.decoder_depth, model.width, model.mlp_width, model.heads) == size[:5]
    assert model.width == 64 * model.heads, "heads are 64 wide throughout"
    assert (model.attention, model.kernel, model.dropout) == ("convolution", 11, 0.1)


@pytest.mark.parametrize("name", SIZES)
def test_the_recipe_is_the_papers(name: str) -> None:
    config = config_of(name)
    task, optimizer = config.task, config.task.optimizer
    assert (optimizer.kind, optimizer.betas, optimizer.weight_decay) == ("adafactor", (0.9, 0.96), 4.5e-2)
    assert (optimizer.clip_norm, task.ema.decay) == (4.0, 0.0)
    assert (task.caption_dropout, task.sampling.guidance_scale) == (0.1, 1.2)
    steps = config.loop.steps
    rate = {
        step: optimizer.learning_rate * learning_rate_factor(step, steps, optimizer.schedule)
        for step in (2_499, 4_999, 85_000, 200_000, 449_999)
    }
    decayed = 4.5e-5 * 0.025 ** ((200_000 - 85_000) / 365_000)
    expected = {2_499: 2.25e-5, 4_999: 4.5e-5, 85_000: 4.5e-5, 200_000: decayed, 449_999: 1.125e-6}
    assert rate == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "processes", "at_a_time"), [("350m", 8, 64), ("750m", 8, 16), ("3b", 8, 2), ("20b", 64, 1)]
)
def test_the_batch_of_8192_divides_as_the_head_comment_says(name: str, processes: int, at_a_time: int) -> None:
    config = config_of(name)
    assert config.data.batch_size == 8192
    share = BatchShard(processes=processes, gradient_accumulation_steps=config.loop.gradient_accumulation_steps)
    assert share.local_size(config.data.batch_size) == at_a_time
    comment = (CONFIGS / f"parti_{name}.yaml").read_text(encoding="utf-8")
    assert name == "20b" or f"{at_a_time} pairs at a time" in " ".join(comment.replace("#", " ").split())
