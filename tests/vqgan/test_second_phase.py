"""A larger decoder on frozen codes: what an image's codes are does not change, and what may not differ is named."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny_runs import stage_1, untrained_tokenizer
from vqgan.config.schema import ConfigError
from vqgan.hub.model_folder import ModelFolderError
from vqgan.image_tokenizer import ImageTokenizer
from vqgan.train_tokenizer import TrainVQGANConfig, train

NO_CARE = {"task.codebook_maintenance": {"memory": 64}, "loop.steps": 4}
LARGER = {"depth": 2, "width": 24, "heads": 2, "mlp_width": 32}


def second_phase(run_dir: Path, first: Path, **changes: Any) -> TrainVQGANConfig:
    return stage_1(run_dir, **({"codes_from": str(first)} | NO_CARE | changes))


def test_a_larger_decoder_learns_and_the_codes_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = ImageTokenizer.from_pretrained(untrained_tokenizer(tmp_path / "first"))
    config = second_phase(tmp_path / "second", tmp_path / "first", **{"model.decoder": LARGER})
    assert train(config)
    assert "frozen; 4 of the decoder's 33 weights start from there" in capsys.readouterr().out
    second = ImageTokenizer.from_pretrained(tmp_path / "second")
    images = torch.rand(3, 3, 32, 32) * 2 - 1
    codes = first.encode(images)
    assert torch.equal(second.encode(images), codes)
    assert torch.equal(second.embed(codes), first.embed(codes))
    assert not torch.equal(second.decode(codes), first.decode(codes))
    assert second.autoencoder.config.decoder.depth == 2  # type: ignore[attr-defined]


def test_a_decoder_of_the_same_size_goes_on_from_what_it_knows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    untrained_tokenizer(tmp_path / "first")
    assert train(second_phase(tmp_path / "second", tmp_path / "first", **{"model.output": "logit_laplace"}))
    assert "19 of the decoder's 21 weights start from there" in capsys.readouterr().out, "all but the last layer"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.encoder": LARGER}, r"codes_from: .*first has model\.encoder\.depth 1, this run 2; only"),
        ({"model.quantizer": {"codebook_size": 64, "code_dim": 4}}, r"first has model\.quantizer"),
        ({"model.patch_size": 4}, r"first has model\.patch_size 8, this run 4; only the decoder and the output may"),
    ],
)
def test_what_decides_the_codes_must_be_the_same(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    untrained_tokenizer(tmp_path / "first")
    with pytest.raises(ConfigError, match=message):
        train(second_phase(tmp_path / "second", tmp_path / "first", **changes))
    assert not (tmp_path / "second").exists()


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match="no model in"):
        train(second_phase(tmp_path / "second", tmp_path / "nowhere"))


@pytest.mark.parametrize("maintenance", [{"unquantized": "1%"}, {"restart_every": 5}])
def test_codes_that_are_frozen_cannot_be_cared_for(tmp_path: Path, maintenance: dict[str, Any]) -> None:
    with pytest.raises(
        ConfigError, match=r"moves codes, but those of codes_from are frozen; set task\.codebook_maintenance"
    ):
        second_phase(tmp_path, tmp_path, **{"task.codebook_maintenance": maintenance})


def test_codes_that_nobody_learned_cannot_be_placed(tmp_path: Path) -> None:
    changes = {"model.quantizer": {"kind": "finite_scalar", "levels": [5, 5]}}
    with pytest.raises(ConfigError, match="places learned codes, but a finite_scalar quantizer has none; set"):
        stage_1(tmp_path, **changes)
