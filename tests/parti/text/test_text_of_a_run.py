"""The text section of a stage-2 run: every kind trains, resumes and samples; a changed one is refused."""

import shutil
from pathlib import Path
from typing import Any

import pytest

import parti.next_token.train_next_token
from parti.next_token.train_next_token import TrainPartiConfig
from parti.pipeline import TextToImage
from parti.text import PretrainedTokenizerConfig, UnigramConfig
from parti.text.run_tokenizer import load_or_train_tokenizer
from tests.tiny_runs import stage_2, untrained_tokenizer
from tests.tiny_text_models import write_bert
from vqgan.config.schema import ConfigError, dump_config, load_config
from vqgan.training.parallel.distributed import build_accelerator
from vqgan.training.run_folder import RunFolder

SHORT = {"loop.steps": 2, "loop.save_every": 1, "task.sampled_prompts": 0}


@pytest.fixture(scope="module")
def image_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def pretrained(folder: Path, **encoder: Any) -> dict[str, Any]:
    return {
        "text": {"kind": "pretrained", "name": str(folder), "length": 32},
        "model.text_encoder": {"kind": "pretrained", "name": str(folder), **encoder},
    }


def draws(run: Path) -> bool:
    return len(TextToImage.from_pretrained(run)("a large red circle", guidance_scale=1.5).images) == 1


def test_a_run_with_a_unigram_vocabulary(image_tokenizer: Path, tmp_path: Path) -> None:
    text = {"kind": "unigram", "vocab_size": 280, "length": 64, "training_captions": 20}
    config = stage_2(tmp_path / "run", image_tokenizer, **SHORT, text=text)
    assert config.text == UnigramConfig(vocab_size=280, length=64, training_captions=20)
    assert parti.next_token.train_next_token.train(config)
    assert draws(tmp_path / "run")


def test_a_run_with_a_frozen_text_encoder_resumes_and_keeps_all_that_it_needs(
    image_tokenizer: Path, tmp_path: Path
) -> None:
    folder = write_bert(tmp_path / "bert")
    changes = pretrained(folder) | SHORT
    config = stage_2(tmp_path / "run", image_tokenizer, **changes)
    assert isinstance(config.text, PretrainedTokenizerConfig)
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert load_config(TrainPartiConfig, tmp_path / "config.yaml") == config
    assert parti.next_token.train_next_token.train(config)
    assert parti.next_token.train_next_token.train(
        stage_2(tmp_path / "run", image_tokenizer, **changes | {"loop.steps": 3})
    )
    shutil.rmtree(folder)
    assert draws(tmp_path / "run")


def test_a_changed_text_section_in_the_same_folder_is_one_clear_error(image_tokenizer: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert parti.next_token.train_next_token.train(stage_2(run, image_tokenizer, **SHORT))
    recorded = (run / "config.yaml").read_text(encoding="utf-8")
    for change in ({"text.length": 48}, {"text.kind": "unigram"}, {"text.vocab_size": 300}):
        with pytest.raises(ConfigError, match=r"text: the run in .* was started with .*keep the run's, or") as caught:
            parti.next_token.train_next_token.train(stage_2(run, image_tokenizer, **SHORT, **change))
        assert "\n" not in str(caught.value)
    assert (run / "config.yaml").read_text(encoding="utf-8") == recorded

    # The first version of the config had one kind, and no name for it.
    (run / "config.yaml").write_text(recorded.replace("  kind: bpe\n", ""), encoding="utf-8")
    assert parti.next_token.train_next_token.train(stage_2(run, image_tokenizer, **SHORT | {"loop.steps": 3}))


def test_a_vocabulary_of_a_run_that_never_began_is_made_anew(image_tokenizer: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    stale = stage_2(run, image_tokenizer, **SHORT, **{"text.length": 48})
    accelerator = build_accelerator()
    data = parti.next_token.train_next_token.DataPipeline(stale.data, stale.seed, require_captions=True)
    assert (
        load_or_train_tokenizer(stale.text, data, parti.next_token.train_next_token.RunFolder(run), accelerator).length
        == 48
    )
    assert parti.next_token.train_next_token.train(stage_2(run, image_tokenizer, **SHORT))
    assert TextToImage.from_pretrained(run).text_tokenizer.length == 64


def test_a_pretrained_encoder_asks_for_its_own_tokenizer(image_tokenizer: Path, tmp_path: Path) -> None:
    changes = pretrained(tmp_path / "bert")
    for text in ({"vocab_size": 280}, {"kind": "pretrained", "name": "someone/else"}):
        with pytest.raises(ConfigError, match=r"set text\.kind to pretrained and text\.name to") as caught:
            stage_2(tmp_path / "run", image_tokenizer, **changes | {"text": text})
        assert "\n" not in str(caught.value)


def test_cut_captions_are_said_at_the_start_and_in_the_first_log(
    image_tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = {"vocab_size": 280, "length": 6, "training_captions": 20}
    assert parti.next_token.train_next_token.train(
        stage_2(tmp_path / "run", image_tokenizer, **SHORT, text=text, **{"loop.log_every": 1})
    )
    said = capsys.readouterr().err.splitlines()
    told = [number for number, line in enumerate(said) if "captions (100%) are longer than the 6 tokens" in line]
    steps = [number for number, line in enumerate(said) if "step 1/2" in line]
    assert len(told) == 2
    assert told[0] < steps[0] < told[1]
    records = RunFolder(tmp_path / "run").read_metrics()
    (event,) = [record for record in records if "captions (100%)" in str(record.get("finding"))]
    assert event["step"] == 1

    whole = stage_2(tmp_path / "whole", image_tokenizer, **SHORT)
    assert parti.next_token.train_next_token.train(whole)
    assert "are longer than" not in capsys.readouterr().err
