"""Reranking: the best candidate is kept, its seed gives it again, and a trained dual encoder tells pairs apart."""

import importlib.util
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from parti.open_pipeline import find_pipeline
from parti.pipeline import TextToImage
from parti.reranker.contrastive_task import ContrastiveTaskConfig
from parti.reranker.dual_encoder import build_dual_encoder, build_processor
from parti.reranker.rerank import best_of, candidate_seeds, sample_best
from parti.reranker.scorer import Scorer
from parti.reranker.train_reranker import TrainRerankerConfig, build_task, train
from parti.sample_files import SampleConfig, write_samples
from parti.text.tokenizer import TextTokenizer
from tests.findings import check_findings
from tests.tiny import CAPTIONS, tiny_text_to_image
from vqgan.config.schema import ConfigError, describe_fields, dump_config, load_config, validate
from vqgan.data.loader import DataPipeline
from vqgan.training.parallel.distributed import build_accelerator
from vqgan.training.run_folder import RunFolder

pytestmark = pytest.mark.slow_threads

ROOT = Path(__file__).parents[3]
CONFIGS = sorted((ROOT / "configs" / "reranker").glob("*.yaml"))
_TOWER = {"depth": 1, "width": 32, "heads": 2, "mlp_width": 64}


class Darkness(Scorer):
    """Prefers dark images, whatever the prompt."""

    def __init__(self) -> None:
        pass

    def score_images(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Tensor:
        assert len(images) == len(prompts)
        return torch.tensor([-float(np.asarray(image, np.float32).mean()) for image in images])


def run_config(run_dir: Path, **loop: Any) -> TrainRerankerConfig:
    """Two seconds of training on shapes of few colors."""
    values = {
        "run_dir": str(run_dir),
        "data": {
            "source": {"kind": "shapes", "train_size": 512, "val_size": 64},
            "transform": {"image_size": 16},
            "batch_size": 32,
        },
        "text": {"vocab_size": 400, "length": 24, "training_captions": 200},  # words as wholes: no caption is cut
        "model": {
            "image_size": 16,
            "patch_size": 4,
            "image_encoder": _TOWER,
            "text_encoder": _TOWER,
            "embedding_width": 16,
        },
        "task": {
            "optimizer": {"kind": "muon", "learning_rate": 1e-2, "schedule": {"warmup": 5}},
            "ema": {"decay": 0.9},
            "precision": "fp32",
        },
        "loop": {"steps": 60, "log_every": 20, "evaluate_every": 0, "preview_every": 0, "save_every": 0} | loop,
        "preview_images": 4,
    }
    return validate(TrainRerankerConfig, values, "test")


def final_state(run_dir: Path, step: int) -> dict[str, Any]:
    return torch.load(run_dir / "checkpoints" / f"step-{step:07d}" / "state.pt", weights_only=True)


def test_best_of_is_the_first_highest_of_each_group() -> None:
    scores = torch.tensor([0.1, 0.3, 0.3, -1.0, -2.0, -0.5, 0.0, 0.0, 0.0])
    assert best_of(scores, 3).tolist() == [1, 5, 6]
    assert best_of(scores, 1).tolist() == list(range(9))
    assert best_of(scores, 9).tolist() == [1]
    for candidates in (2, 0):
        with pytest.raises(ValueError, match=f"9 scores do not divide into groups of {candidates}"):
            best_of(scores, candidates)


def test_candidates_have_the_seeds_that_follow_their_images() -> None:
    assert candidate_seeds([("a", 5), ("b", 8)], 3) == [("a", 5), ("a", 6), ("a", 7), ("b", 8), ("b", 9), ("b", 10)]
    assert candidate_seeds([("a", 5), ("b", 8)], 1) == [("a", 5), ("b", 8)]


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_the_best_candidate_is_kept_and_its_seed_gives_it_again(batch_size: int) -> None:
    model = tiny_text_to_image()
    wanted = [(CAPTIONS[0], 0), (CAPTIONS[0], 4), (CAPTIONS[1], 7)]
    kept = list(sample_best(model, Darkness(), wanted, 4, batch_size=batch_size))
    assert len(kept) == 3
    for one, (prompt, seed) in zip(kept, wanted, strict=True):
        candidates = model(prompt, num_images=4, seed=seed).generated
        scores = Darkness().score_images([other.image for other in candidates], [prompt] * 4)
        best = candidates[int(scores.argmax())]
        assert (one.generated.prompt, one.generated.seed, one.score) == (prompt, best.seed, scores.max().item())
        assert np.array_equal(one.generated.image, best.image)
        (again,) = model(prompt, seed=one.generated.seed).images
        assert np.array_equal(again, one.generated.image)


def test_one_candidate_is_plain_sampling() -> None:
    model = tiny_text_to_image()
    (kept,) = sample_best(model, Darkness(), [(CAPTIONS[0], 3)], 1)
    assert np.array_equal(kept.generated.image, model(CAPTIONS[0], seed=3).images[0])


def test_sample_files_say_which_seed_won_and_with_what_score(trained: Path, tmp_path: Path) -> None:
    tiny_text_to_image().save_pretrained(tmp_path / "model")
    options = {"model": str(tmp_path / "model"), "n": 2, "seed": 5, "rerank": 3, "reranker": str(trained)}
    options |= {"prompts": CAPTIONS[:2], "device": "cpu", "out": str(tmp_path / "out")}
    config = validate(SampleConfig, options, "the test")
    write_samples(config, find_pipeline(config.model))
    records = json.loads((tmp_path / "out" / "samples.json").read_text(encoding="utf-8"))
    model, scorer = TextToImage.from_pretrained(tmp_path / "model"), Scorer.from_pretrained(trained)
    assert [record["prompt"] for record in records] == [prompt for prompt in CAPTIONS[:2] for _ in range(2)]
    for record, first in zip(records, [5, 8] * 2, strict=True):
        candidates = model(record["prompt"], num_images=3, seed=first).images
        scores = scorer.score_images(candidates, [record["prompt"]] * 3)
        assert record["seed"] == first + int(scores.argmax())
        assert record["rerank"] == {
            "model": str(trained),
            "candidates": 3,
            "score": pytest.approx(scores.max().item(), abs=1e-6),
        }
        with Image.open(tmp_path / "out" / record["file"]) as image:
            assert np.array_equal(image, candidates[record["seed"] - first])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run")
    assert train(run_config(run, save_every=40, evaluate_every=30))
    return run


def test_training_lowers_the_loss_and_raises_retrieval(trained: Path) -> None:
    records = RunFolder(trained).read_metrics()
    losses = [float(str(record["loss"])) for record in records if record["split"] == "train"]
    assert losses[-1] < losses[0] - 0.5
    assert losses[-1] < math.log(32) - 0.5
    val = [record for record in records if record["split"] == "val"]
    for name in ("image_to_text_accuracy", "text_to_image_accuracy"):
        before, after = (float(str(record[name])) for record in val)
        assert after > before
        assert after > 5 / 64, "chance is 1/64"
    assert {"batch_accuracy", "logit_scale", "cut_captions", "gradient_norm"} <= records[0].keys()
    assert records[0]["cut_captions"] == 0


def test_the_shipped_folder_prefers_a_images_own_caption(trained: Path) -> None:
    config = load_config(TrainRerankerConfig, trained / "config.yaml")
    batch = DataPipeline(config.data, config.seed).preview_batch(32)
    scorer = Scorer.from_pretrained(trained)
    own, other = (scorer.score(batch.images, texts) for texts in (batch.texts(), batch.texts()[1:] + batch.texts()[:1]))
    assert (own > other).float().mean() > 0.8
    assert (trained / "samples" / "step-0000060.png").is_file()


def test_a_run_that_was_stopped_goes_on_as_if_nothing_had_been(trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "again"
    shutil.copytree(trained, run)
    shutil.rmtree(run / "checkpoints" / "step-0000060")
    shutil.rmtree(run / "model")
    assert train(run_config(run, save_every=40, evaluate_every=30))
    states = [final_state(folder, 60) for folder in (run, trained)]
    for part in ("model", "ema"):
        for name, weight in states[1][part].items():
            assert torch.equal(states[0][part][name], weight), f"{part}.{name}"
    assert (run / "model" / "model.safetensors").read_bytes() == (trained / "model" / "model.safetensors").read_bytes()


def test_a_run_does_not_go_on_with_another_vocabulary(trained: Path) -> None:
    config = run_config(trained)
    other = config.model_copy(update={"text": config.text.model_copy(update={"length": 20})})
    with pytest.raises(ConfigError, match=r"was started with .*'length': 24.* this config has .*'length': 20"):
        train(other)


def test_the_scale_of_the_logits_stays_below_100(tmp_path: Path) -> None:
    config = run_config(tmp_path)
    data = DataPipeline(config.data, 0)
    TextTokenizer.train(data.captions(100), config.text).save_pretrained(tmp_path)
    task = build_task(config, build_accelerator(), build_processor(config.model, tmp_path))
    task.model.logit_scale.data.fill_(9.0)
    task.train_step([data.preview_batch(8, "train")], 0)
    assert task.model.logit_scale.item() == pytest.approx(math.log(100))


def test_diagnosis_names_lost_numbers_and_a_loss_that_is_no_better_than_guessing(tmp_path: Path) -> None:
    config = run_config(tmp_path, gradient_accumulation_steps=2)
    TextTokenizer.train(["a red cat"], config.text).save_pretrained(tmp_path)
    task = build_task(config, build_accelerator(), build_processor(config.model, tmp_path))
    guess = math.log(16)
    healthy = {"loss": guess - 0.1, "run_share": 0.9}
    assert task.diagnose(healthy) == task.diagnose({}) == []
    assert task.diagnose({"loss": guess + 1, "run_share": 0.05}) == [], "it has just begun"
    cases = {
        "not finite: loss;": healthy | {"loss": math.nan},
        "6.0% of the steps had no finite gradient": healthy | {"skipped_share": 0.06},
        "no better than guessing among 16 pairs": healthy | {"loss": guess + 0.01},
    }
    check_findings(task.diagnose, cases, ContrastiveTaskConfig)


def test_configs_that_do_not_fit_are_refused() -> None:
    cases = {
        "data.transform.image_size 64 and model.image_size 256 differ": {"data": {"transform": {"image_size": 64}}},
        "does not divide into patches of 7": {"model": {"patch_size": 7}},
        "width 30 does not divide into 4 heads": {"model": {"text_encoder": _TOWER | {"width": 30, "heads": 4}}},
        "leaves no two pairs to compare": {"data": {"batch_size": 4}, "loop": {"gradient_accumulation_steps": 4}},
    }
    for message, values in cases.items():
        with pytest.raises(ConfigError, match=message):
            validate(TrainRerankerConfig, values, "test")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_config_is_built(path: Path, tmp_path: Path) -> None:
    config = load_config(TrainRerankerConfig, path)
    (tmp_path / "again.yaml").write_text(dump_config(config))
    assert load_config(TrainRerankerConfig, tmp_path / "again.yaml") == config

    captions = list(DataPipeline(config.data, config.seed).captions(500))
    TextTokenizer.train(captions, config.text).save_pretrained(tmp_path)
    processor = build_processor(config.model, tmp_path)
    with torch.device("meta"):
        model = build_dual_encoder(config.model, processor)
    assert not any(Scorer(model, processor).is_cut(captions)), "a relation that is cut off cannot be learned"


def test_there_are_configs() -> None:
    assert "shapes.yaml" in {path.name for path in CONFIGS}


def test_the_tool_lists_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("train_reranker", ROOT / "tools" / "train_reranker.py")
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    assert tool.main(["--help"]) == 0
    text = capsys.readouterr().out
    for field in describe_fields(TrainRerankerConfig):
        assert f"--{field.name}  {field.type}  [{field.default}]" in text
    assert tool.main(["--model.patch_size", "7"]) == 2
    assert capsys.readouterr().err.startswith("error: ")
