"""Parti's order: a small tokenizer, a generator on its codes, then a larger decoder of the same codes behind it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import parti.next_token.train_next_token
import vqgan.train_tokenizer
from parti.code_cache.encode import encode
from parti.completion import keep_top
from parti.evaluation.generator import load_evaluation, measure_generator
from parti.pipeline import TextToImage
from tests.parti.code_cache.tiny_caches import settings
from tests.tiny_runs import stage_1, stage_2, untrained_tokenizer
from tools.sample import main as sample
from vqgan.config.options import split_options
from vqgan.config.schema import ConfigError
from vqgan.hub.model_folder import ModelFolderError
from vqgan.image_tokenizer import ImageTokenizer

LARGER = {"depth": 2, "width": 24, "heads": 2, "mlp_width": 32}
PROMPT = "a small red circle"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """small/, second/ with a larger decoder of its codes, stage2/ on small's, and other/ of other codes."""
    folder = tmp_path_factory.mktemp("order")
    untrained_tokenizer(folder / "small")
    changes: dict[str, Any] = {"codes_from": str(folder / "small"), "model.decoder": LARGER, "loop.steps": 2}
    assert vqgan.train_tokenizer.train(
        stage_1(folder / "second", **changes | {"task.codebook_maintenance": {"memory": 64}})
    )
    assert parti.next_token.train_next_token.train(stage_2(folder / "stage2", folder / "small", **{"loop.steps": 2}))
    other = ImageTokenizer.from_pretrained(folder / "small")
    with torch.no_grad():
        next(other.autoencoder.encoder.parameters()).add_(1e-3)
    other.save_pretrained(folder / "other")
    return folder


def test_the_codes_are_the_same_and_the_images_are_not(trained: Path) -> None:
    own = TextToImage.from_pretrained(trained / "stage2")
    larger = TextToImage.from_pretrained(trained / "stage2", image_tokenizer=trained / "second")
    assert own.image_tokenizer.codes_fingerprint() == larger.image_tokenizer.codes_fingerprint()
    assert own.image_tokenizer.decoder_fingerprint() != larger.image_tokenizer.decoder_fingerprint()
    codes = [
        model.image_tokenizer.encode(torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
        for model in (own, larger)
    ]
    assert torch.equal(*codes)
    (one,), (two,) = (model(PROMPT, seed=3).images for model in (own, larger))
    assert not np.array_equal(one, two)
    generated: list[torch.Tensor] = []
    for model in (own, larger):
        model.generate([(PROMPT, 3)], model.sampling, on_codes=generated.append)
    half = len(generated) // 2
    assert torch.equal(generated[half - 1], generated[-1]), "the last of each is all codes"


def test_a_image_is_completed_with_the_larger_decoder(trained: Path) -> None:
    larger = TextToImage.from_pretrained(trained / "stage2", image_tokenizer=trained / "second")
    (image,) = larger(PROMPT).images
    (completed,) = larger(PROMPT, seed=1, image=image, keep=keep_top(larger.image_tokenizer.grid, 0.5)).images
    assert completed.size == image.size


def test_what_is_saved_draws_with_the_larger_decoder(trained: Path, tmp_path: Path) -> None:
    larger = TextToImage.from_pretrained(trained / "stage2", image_tokenizer=trained / "second")
    larger.save_pretrained(tmp_path)
    assert np.array_equal(TextToImage.from_pretrained(tmp_path)(PROMPT).images[0], larger(PROMPT).images[0])


def test_sample_takes_it_and_says_so(trained: Path, tmp_path: Path) -> None:
    words = ["--model", str(trained / "stage2"), "--prompt", PROMPT, "--n", "1", "--device", "cpu"]
    assert sample([*words, "--out", str(tmp_path / "own")]) == 0
    assert sample([*words, "--out", str(tmp_path / "second"), "--image-tokenizer", str(trained / "second")]) == 0
    one, two = ((tmp_path / name / "0000-00.png").read_bytes() for name in ("own", "second"))
    assert one != two
    (record,) = json.loads((tmp_path / "second" / "samples.json").read_text(encoding="utf-8"))
    assert record["image_tokenizer"] == str(trained / "second")


def test_evaluate_says_which_decoder_drew(trained: Path, tmp_path: Path) -> None:
    protocols = []
    for given in ([], ["--image_tokenizer", str(trained / "second")]):
        words = [
            "--model",
            str(trained / "stage2"),
            "--out",
            str(tmp_path / "m.json"),
            "--samples",
            "2",
            "--limit",
            "2",
            *("--inception_weights", "random", "--clip", "[]", "--device", "cpu"),
        ]
        config = load_evaluation(list(split_options([*words, *given])))
        report = measure_generator(config)
        protocols.append(report.shared["model"])
    own, second = protocols
    assert own["image_tokenizer"] == str(trained / "stage2/model/image_tokenizer")
    assert second["image_tokenizer"] == str(trained / "second/model")
    assert own["image_tokenizer_sha256"] != second["image_tokenizer_sha256"]
    assert own["codes_fingerprint"] == second["codes_fingerprint"]


def test_one_of_other_codes_is_refused_in_one_line(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", str(trained / "stage2"), "--prompt", PROMPT, "--out", str(tmp_path), "--device", "cpu"]
    assert sample([*words, "--image-tokenizer", str(trained / "other")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"the image tokenizer {trained / 'other'} differs from it in the encoder's weights; give the one" in line


def test_a_folder_that_mixes_tokenizers_of_equal_sizes_is_refused(trained: Path, tmp_path: Path) -> None:
    TextToImage.from_pretrained(trained / "stage2").save_pretrained(tmp_path)
    ImageTokenizer.from_pretrained(trained / "other").save_pretrained(tmp_path / "image_tokenizer")
    with pytest.raises(ModelFolderError, match="learned the codes of another image tokenizer; the one in "):
        TextToImage.from_pretrained(tmp_path)
    assert TextToImage.from_pretrained(tmp_path, image_tokenizer=trained / "small")(PROMPT).images


def test_a_code_cache_of_the_small_one_serves_the_larger(trained: Path, tmp_path: Path) -> None:
    assert encode(settings(tmp_path / "cache", trained / "small"))
    data = {"codes": str(tmp_path / "cache"), "batch_size": 8}
    assert parti.next_token.train_next_token.train(
        stage_2(tmp_path / "run", trained / "second", data=data, **{"loop.steps": 1})
    )
    drawing = TextToImage.from_pretrained(tmp_path / "run").image_tokenizer
    assert drawing.decoder_fingerprint() == ImageTokenizer.from_pretrained(trained / "second").decoder_fingerprint()
    with pytest.raises(ConfigError, match="differs from the one that made them in the encoder's weights"):
        parti.next_token.train_next_token.train(stage_2(tmp_path / "no", trained / "other", data=data))


@pytest.mark.parametrize(
    ("model", "differing"),
    [
        ({"quantizer": {"codebook_size": 32, "code_dim": 4, "commitment_weight": 3.0}}, ""),
        ({"encoder": {"depth": 1, "width": 16, "heads": 2, "mlp_width": 32, "dropout": 0.5}}, ""),
        ({"output": "logit_laplace"}, ""),
        ({"quantizer": {"codebook_size": 32, "code_dim": 4, "l2_normalize": False}}, "settings"),
        ({"encoder": {"depth": 1, "width": 16, "heads": 4, "mlp_width": 32}}, "settings"),
    ],
)
def test_what_decides_codes_is_told_from_what_does_not(trained: Path, model: dict[str, Any], differing: str) -> None:
    """Settings that no tensor shows are in it; what only training and the decoder know is not."""
    first = ImageTokenizer.from_pretrained(trained / "small").autoencoder
    changed = stage_1(trained / "nowhere", **{f"model.{name}": value for name, value in model.items()}).model
    autoencoder = vqgan.train_tokenizer.build_autoencoder(changed)
    autoencoder.encoder.load_state_dict(first.encoder.state_dict())
    autoencoder.quantizer.load_state_dict(first.quantizer.state_dict())
    ours = ImageTokenizer(autoencoder).codes_fingerprint()
    assert ours.differs_from(ImageTokenizer(first).codes_fingerprint()) == differing


def test_running_sums_of_a_codebook_are_no_part_of_its_codes(tmp_path: Path) -> None:
    kind = {"kind": "nearest_ema", "codebook_size": 32, "code_dim": 4}
    autoencoder = vqgan.train_tokenizer.build_autoencoder(stage_1(tmp_path, **{"model.quantizer": kind}).model)
    before = ImageTokenizer(autoencoder).codes_fingerprint()
    autoencoder.quantizer.counts.add_(1)
    assert ImageTokenizer(autoencoder).codes_fingerprint() == before
    with torch.no_grad():
        autoencoder.quantizer.codebook.add_(1)
    assert ImageTokenizer(autoencoder).codes_fingerprint().differs_from(before) == "the codebook"
