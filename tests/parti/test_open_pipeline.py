"""One face for pipelines: a new kind of model works everywhere, and a command reads its folder once."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from parti.base_pipeline import Pipeline, Requests, SampleOptions
from parti.evaluation.generator import load_evaluation, measure_generator
from parti.open_pipeline import PIPELINES, StoredPipeline, find_pipeline, open_pipeline
from parti.reranker.rerank import sample_best
from parti.reranker.scorer import Scorer
from parti.sample_files import SampleConfig, load_sample_config, write_samples
from parti.text.tokenizer import TextTokenizer
from tests.tiny import tiny_text_to_image, tiny_text_tokenizer
from vqgan.config.options import split_options
from vqgan.config.schema import ConfigError
from vqgan.hub.model_folder import CONFIG_FILE, ModelFolder, load_model

PROMPTS = ["a small red circle", "a large blue square"]


class Flat(Pipeline):
    """A third kind of model: one color an image, made of a learned shade and the seed."""

    kinds = ("flat",)
    folder_holds = ("flat model", "give a folder of this test")
    unsupported: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("sampling", "completion", "on_rows", "all_scales", "image_tokenizer"), "paints one color"
    )

    def __init__(self, generator: nn.Module, text_tokenizer: TextTokenizer) -> None:
        self.generator, self.text_tokenizer = generator, text_tokenizer

    @property
    def image_size(self) -> int:
        return 8

    @classmethod
    def sampling_in(cls, folder: ModelFolder) -> None:
        """Returns None."""

    @classmethod
    def image_size_in(cls, folder: ModelFolder) -> int:
        return folder.config["image_size"]

    def _generate_batch(
        self,
        requests: Requests,
        options: SampleOptions,  # noqa: ARG002
        advance: Callable[[], object],
    ) -> list[Image.Image]:
        (shade,) = self.generator.parameters()
        advance()
        return [Image.new("RGB", (8, 8), (int(shade), seed % 256, len(prompt))) for prompt, seed in requests]

    def _stored(self) -> tuple[dict[str, Any], nn.Module]:
        return {"kind": "flat", "image_size": 8}, self.generator

    @classmethod
    def _load(cls, folder: ModelFolder) -> "Flat":
        return cls(load_model(new_generator, folder.path), TextTokenizer.from_pretrained(folder.path))


class GreenIsBest(Scorer):
    def __init__(self) -> None:
        """Without any network."""

    def score_images(self, images: Any, prompts: Any) -> torch.Tensor:  # noqa: ARG002
        return torch.tensor([float(np.array(image)[0, 0, 1]) for image in images])


def new_generator() -> nn.Module:
    generator = nn.Linear(1, 1, bias=False)
    nn.init.constant_(generator.weight, 7.0)
    return generator


@pytest.fixture
def flat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(PIPELINES, "flat", Flat)
    Flat(new_generator(), tiny_text_tokenizer()).save_pretrained(tmp_path / "flat")
    return str(tmp_path / "flat")


def sampled(model: str, out: Path, *more: str) -> tuple[SampleConfig, StoredPipeline]:
    words = [word for prompt in PROMPTS for word in ("--prompt", prompt)]
    words += ["--device", "cpu", "--model", model, "--out", str(out), *more]
    return load_sample_config(list(split_options(words)))


def test_a_new_kind_samples_reranks_and_is_evaluated(flat: str, tmp_path: Path) -> None:
    records = write_samples(*sampled(flat, tmp_path / "out", "--n", "2", "--seed", "3"))
    assert records == json.loads((tmp_path / "out" / "samples.json").read_text(encoding="utf-8"))
    assert [(record["prompt"], record["seed"]) for record in records] == [(p, s) for p in PROMPTS for s in (3, 4)]
    with Image.open(tmp_path / "out" / "0001-01.png") as image:
        assert image.getpixel((0, 0)) == (7, 4, len(PROMPTS[1]))

    kept = list(sample_best(open_pipeline(flat), GreenIsBest(), [(PROMPTS[0], 10)], 3, batch_size=2))
    assert [(one.generated.seed, one.score) for one in kept] == [(12, 12.0)]

    words = ["--model", flat, "--out", str(tmp_path / "metrics.json"), "--device", "cpu", "--clip", "[]"]
    words += ["--data.source", "{kind: shapes, train_size: 4, val_size: 6}", "--inception_weights", "random"]
    report = measure_generator(load_evaluation(list(split_options([*words, "--samples", "4"]))))
    assert report.model["parameters"] == 1
    assert report.as_json()["metrics"]["prompt_accuracy"]["value"] == 0
    assert "nats_per_code" not in report.as_json()["metrics"]
    assert "images of 8x8 in one pass" in report.text()


def test_an_option_that_a_kind_has_no_use_for_is_one_line(flat: str, tmp_path: Path) -> None:
    for words in (["--watch"], ["--image-tokenizer", "x"], ["--top-k", "3"]):
        with pytest.raises(ConfigError, match=r"^--.*: the model in .*flat paints one color; leave it out$"):
            sampled(flat, tmp_path, *words)
    with pytest.raises(ConfigError, match="all_scales: Flat paints one color"):
        next(open_pipeline(flat).stream([("a", 0)], SampleOptions(all_scales=True)))
    with pytest.raises(ConfigError, match=r"image_tokenizer: the model in .*flat paints one color"):
        open_pipeline(flat, "another")


def test_sampling_finds_the_folder_and_reads_its_config_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_text_to_image().save_pretrained(tmp_path / "run" / "model")
    reads: list[Path] = []
    read_text = ModelFolder.__init__

    def count(self: ModelFolder, path: Path, config: dict[str, Any]) -> None:
        reads.append(path)
        read_text(self, path, config)

    monkeypatch.setattr(ModelFolder, "__init__", count)
    write_samples(*sampled(str(tmp_path / "run"), tmp_path / "out", "--n", "1"))
    model = tmp_path / "run" / "model"
    assert reads == [model, model / "image_tokenizer"]
    assert (model / CONFIG_FILE).is_file()


def test_what_a_folder_says_without_its_weights(flat: str, tmp_path: Path) -> None:
    assert (find_pipeline(flat).sampling, find_pipeline(flat).image_size) == (None, 8)
    model = tiny_text_to_image()
    model.save_pretrained(tmp_path / "codes")
    (tmp_path / "codes" / "model.safetensors").unlink()
    stored = find_pipeline(tmp_path / "codes")
    assert (stored.sampling, stored.image_size) == (model.sampling, model.image_size)
