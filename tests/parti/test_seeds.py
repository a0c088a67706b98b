"""Seeds at the ends of their range: one line, or a run and images like any other."""

from pathlib import Path

import pytest
import torch

from parti.fused.captioning.files import CaptionConfig
from parti.next_token.train_next_token import TrainPartiConfig
from parti.open_pipeline import StoredPipeline
from parti.pairs import dropped_captions
from parti.sample_files import SampleConfig, load_sample_config, read_prompts, write_samples
from tests.tiny import tiny_text_to_image
from vqgan.config.options import split_options
from vqgan.config.schema import ConfigError, validate
from vqgan.training.parallel.seeding import SEEDS, seed_everything

LARGEST = 2**63 - 1


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_text_to_image().save_pretrained(folder)
    return folder


def sampled(model: Path, out: Path, **options: int) -> tuple[SampleConfig, StoredPipeline]:
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    words += ["--prompt", "a red cat", "--device", "cpu", "--model", str(model), "--out", str(out)]
    return load_sample_config(list(split_options(words)))


@pytest.mark.parametrize(("seed", "n"), [(LARGEST, 1), (LARGEST - 1, 2), (0, 1)])
def test_the_last_seeds_draw(seed: int, n: int, model: Path, tmp_path: Path) -> None:
    records = write_samples(*sampled(model, tmp_path, seed=seed, n=n))
    assert [record["seed"] for record in records] == [seed + number for number in range(n)]


@pytest.mark.parametrize(("seed", "n"), [(LARGEST, 2), (LARGEST - 2, 4), (LARGEST + 1, 1), (-1, 1), (2**200, 1)])
def test_seeds_beyond_the_last_are_one_line(seed: int, n: int, model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="seed") as raised:
        sampled(model, tmp_path, seed=seed, n=n)
    assert "\n" not in str(raised.value)


def test_candidates_count_too(model: Path, tmp_path: Path) -> None:
    options = {"prompts": ("a",), "model": str(model), "out": str(tmp_path), "reranker": "x", "rerank": 3, "n": 2}
    assert validate(SampleConfig, options | {"seed": LARGEST - 5}, "test").seed == LARGEST - 5
    with pytest.raises(ConfigError, match=f"give a seed of at most {LARGEST - 5}"):
        validate(SampleConfig, options | {"seed": LARGEST - 4}, "test")


def test_captions_count_their_seeds_by_image() -> None:
    with pytest.raises(ConfigError, match=f"give a seed of at most {LARGEST - 1}"):
        validate(CaptionConfig, {"model": "m", "images": ("a", "b"), "seed": LARGEST}, "test")


def test_a_runs_seed_serves_at_its_last_step() -> None:
    config = validate(TrainPartiConfig, {"image_tokenizer": "x", "seed": SEEDS - 1}, "test")
    for rank in (0, 10_000):
        seed_everything(config.seed, rank)
    assert dropped_captions(0.5, 8, config.seed, 10**9, 0, 8).dtype == torch.bool
    for seed in (SEEDS, 2**63, 2**64, -1):
        with pytest.raises(ConfigError, match="seed"):
            validate(TrainPartiConfig, {"image_tokenizer": "x", "seed": seed}, "test")


def test_only_newlines_end_a_prompt(tmp_path: Path) -> None:
    """What a word processor leaves in a line stays in it."""
    separators = "\u2028\u2029\x0b\x0c\x85\x1c\x1d\x1e"
    lines = [f"a red{separator}cat" for separator in separators]
    for number, end in enumerate(("\n", "\r\n", "\r")):
        path = tmp_path / f"{number}.txt"
        path.write_bytes((f"\ufeff{end.join(lines)}{end}{end}").encode())
        assert read_prompts(str(path)) == lines
