"""Runs of both stages that start from another run: what they say, and that a resumed one needs the source no more."""

import shutil
from pathlib import Path

import pytest

import parti.next_token.train_next_token as stage_2_run
import vqgan.train_tokenizer as stage_1_run
from tests.tiny_runs import stage_1, stage_2
from vqgan.config.schema import ConfigError
from vqgan.image_tokenizer import ImageTokenizer


def test_both_stages_start_from_runs_and_resume_without_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = {"loop.steps": 2, "loop.save_every": 1}
    stage_1_run.train(stage_1(tmp_path / "one", **short))
    capsys.readouterr()
    tuned = stage_1(tmp_path / "two", start_from=str(tmp_path / "one"), **short)
    stage_1_run.train(tuned)
    said = "".join(capsys.readouterr())
    assert f"start_from {tmp_path / 'one'}: " in said
    assert f"{tmp_path / 'one'}, discriminator: " in said
    tokenizer = tmp_path / "two"

    stage_2_run.train(stage_2(tmp_path / "three", tokenizer, **short))
    capsys.readouterr()
    tuned_2 = stage_2(tmp_path / "four", tokenizer, start_from=str(tmp_path / "three"), **short)
    stage_2_run.train(tuned_2)
    assert f"start_from {tmp_path / 'three'}: " in "".join(capsys.readouterr())

    shutil.rmtree(tmp_path / "one")
    shutil.rmtree(tmp_path / "three")
    stage_2_run.train(tuned_2.model_copy(update={"loop": tuned_2.loop.model_copy(update={"steps": 3})}))
    stage_1_run.train(tuned.model_copy(update={"loop": tuned.loop.model_copy(update={"steps": 3})}))
    assert "tensors taken" not in "".join(capsys.readouterr())


def test_a_source_that_is_not_there_or_conflicts_is_one_line(tmp_path: Path) -> None:
    tokenizer = tmp_path / "tokenizer"
    ImageTokenizer(stage_1_run.build_autoencoder(stage_1(tmp_path / "x").model)).save_pretrained(tokenizer)
    with pytest.raises(ValueError, match="missing"):
        stage_1_run.train(stage_1(tmp_path / "run", start_from=str(tmp_path / "missing")))
    with pytest.raises(ConfigError, match=r"task\.lora .* name a model in start_from"):
        stage_2(tmp_path / "run", tokenizer, **{"task.lora": {"rank": 2}})
