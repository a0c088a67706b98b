"""The captioning task: its losses, who learns, its metrics, that it learns, resumes and starts from a trunk."""

import math
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from parti.fused.captioning.captioner import Captioner, CaptionerConfig
from parti.fused.captioning.captioning_task import CaptioningTask, CaptioningTaskConfig
from parti.fused.captioning.decoding import ROWS, DecodingConfig, Row, decode
from parti.fused.captioning.encode_captions import read_captions
from parti.fused.captioning.losses import attention_imbalance, weighted, word_nats
from parti.fused.captioning.metrics import can_compare_texts, compare_texts
from parti.fused.captioning.train_captioning import TrainCaptioningConfig, build_task, train
from parti.fused.inpainting.inpainter import Inpainter
from parti.fused.inpainting.network import InpaintingNetwork
from parti.fused.rows import TrunkConfig
from parti.fused.text_side import TextSideConfig, text_space
from parti.text import build_text_tokenizer
from parti.text.tokenizer import TextTokenizer
from tests.findings import check_findings
from tests.tiny import tiny_text_tokenizer
from tests.tiny_captions import MODEL, captioned, run_config, tiny_task
from tests.two_processes import run_in_processes
from vqgan.config.schema import ConfigError, dump_config, load_config, validate
from vqgan.data.batch import Batch
from vqgan.data.images.transforms import to_pil
from vqgan.data.loader import DataPipeline
from vqgan.training.loop import TrainingLoop
from vqgan.training.parallel.distributed import build_accelerator
from vqgan.training.run_folder import RunFolder

pytestmark = pytest.mark.slow_threads

CONFIGS = sorted((Path(__file__).parents[4] / "configs" / "parti").glob("fused_captioning*.yaml"))
HALVES = (slice(0, 4), slice(4, 8))


def part(whole: Batch, rows: slice) -> Batch:
    return Batch(whole.images[rows], whole.captions[rows], whole.names[rows])


# Losses


def test_losses_are_their_formulas() -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.tensor([[1, 5, 6, 2, 0], [1, 7, 2, 0, 0]])
    predicted = torch.tensor([[0, 1, 1, 1, 0], [0, 1, 1, 0, 0]]).bool()
    logits = torch.randn(2, 5, 9, generator=generator)
    attention_maps = torch.rand(2, 5, 3, generator=generator)
    nats = torch.tensor(0.0)
    for row, count in ((0, 3), (1, 2)):
        for t in range(count):
            nats -= logits[row, t].log_softmax(-1)[ids[row, t + 1]]
    torch.testing.assert_close(word_nats(logits, ids, predicted), nats)
    uneven = [
        (1 - sum(attention_maps[row, t, p] for t in range(count))) ** 2
        for row, count in ((0, 3), (1, 2))
        for p in range(3)
    ]
    torch.testing.assert_close(attention_imbalance(attention_maps, predicted), torch.stack(uneven).mean())
    assert weighted([1.0, 2.0, 0.5], [torch.tensor(3.0), torch.tensor(5.0), torch.tensor(2.0)]) == 14


def test_the_total_has_the_weights_of_the_rows_and_of_even_attention() -> None:
    weights = {"row_3": 0.7, "row_7": 0.3, "row_11": 0.5, "row_14": 1.1, "attention_balance": 0.9}
    metrics = tiny_task(losses=weights).train_step([captioned()], 0)
    total = sum(weights[f"row_{row}"] * metrics[f"loss_row_{row}"] for row in ROWS)
    torch.testing.assert_close(metrics["loss"], total + 0.9 * metrics["loss_attention"])
    assert all(metric.isfinite() and not metric.requires_grad for metric in metrics.values())
    assert CaptioningTaskConfig().losses.rows == (1.0, 0.3, 0.5, 1.0)


def test_a_row_without_weight_teaches_nothing() -> None:
    """With the weight of row 14 alone, the other heads stay, the trunk and the draft's reader learn."""
    task = tiny_task(losses={"row_3": 0.0, "row_7": 0.0, "row_11": 0.0, "attention_balance": 0.0}, ema={"decay": 0.0})
    before = {name: weight.clone() for name, weight in task.captioner.state_dict().items()}
    for step in range(3):  # a fresh fusion passes nothing on in the first
        task.train_step([captioned()], step)
    same = {name for name, weight in task.captioner.state_dict().items() if torch.equal(weight, before[name])}
    still = {name for name in before if re.match(r"tellers\.(heads|words)\.(3|7|11)\.", name)}
    frozen = {name for name, weight in task.captioner.named_parameters() if not weight.requires_grad}
    assert still | frozen <= same
    learning = ("parts.image.1.0.weight", "parts.text.11.bert.output.dense.weight", "parts.fusions.4.image_key.weight")
    assert not same & {*learning, "tellers.show_attend_tell.cell.weight_hh"}


def test_the_words_of_a_step_count_alike_in_whatever_parts_they_are_read() -> None:
    found = {}
    whole = captioned()
    for name, parts in (("whole", [whole]), ("halves", [part(whole, rows) for rows in HALVES])):
        task = tiny_task(ema={"decay": 0.0})
        found[name] = task.train_step(parts, 3)
    assert found["halves"].keys() == found["whole"].keys()
    for metric in found["whole"]:
        torch.testing.assert_close(found["halves"][metric], found["whole"][metric], rtol=1e-4, atol=1e-6)


def test_drafts_are_a_function_of_seed_step_and_row() -> None:
    tokens, whole = tiny_task().captioner.tokens, captioned()
    first = read_captions(tokens, whole, 0, 5, 8, 0)
    second = read_captions(tokens, part(whole, HALVES[1]), 0, 5, 8, 4)
    for one, two in zip(first.noise, second.noise, strict=True):
        assert torch.equal(one[4:], two)
    for seed, step in ((0, 6), (1, 5)):
        assert not torch.equal(first.noise.words, read_captions(tokens, whole, seed, step, 8, 0).noise.words)
    assert first.truncated_fraction == 0


def one_of_two(folder: str) -> None:
    rank = int(os.environ["RANK"])
    task = tiny_task(lambda _, caption: len(caption) % 2 == 0)
    val = task.evaluate([[captioned(8), captioned(4, seed=1)][rank]])
    whole, own = captioned(8), slice(4 * rank, 4 * rank + 4)
    metrics = task.train_step([Batch(whole.images[own], whole.captions[own], whole.names[own])], 3)
    found = {"val": val, "metrics": {name: metric.detach() for name, metric in metrics.items()}}
    torch.save(found, Path(folder, f"found-{rank}.pt"))
    torch.distributed.destroy_process_group()


@pytest.mark.slow  # test_equal_steps has a step of each objective in two processes
def test_two_processes_are_one(tmp_path: Path) -> None:
    said = tmp_path / "said.txt"
    assert run_in_processes(one_of_two, tmp_path, said=said) == [0, 0], said.read_text()
    first, second = (torch.load(tmp_path / f"found-{rank}.pt", weights_only=True) for rank in range(2))

    task = tiny_task(lambda _, caption: len(caption) % 2 == 0)
    val = task.evaluate([captioned(8), captioned(4, seed=1)])
    assert first["val"] == second["val"] == pytest.approx(val, rel=1e-5)
    metrics = task.train_step([captioned()], 3)
    for name in ("loss", *(f"loss_row_{row}" for row in ROWS), "loss_attention", "gradient_norm"):
        mean = (first["metrics"][name] + second["metrics"][name]) / 2
        torch.testing.assert_close(mean, metrics[name], rtol=1e-4, atol=1e-6)
    assert first["metrics"]["gradient_norm"] == second["metrics"]["gradient_norm"]


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    task = tiny_task()
    before = {name: weight.clone() for name, weight in task.captioner.state_dict().items()}
    poisoned = captioned()
    poisoned.images[0, 0, 0, 0] = math.inf
    assert task.train_step([poisoned], 0)["skipped"] == 1
    for network in (task.captioner, task.ema.module):
        assert all(torch.equal(weight, before[name]) for name, weight in network.state_dict().items())


def test_the_trunk_learns_at_its_own_rate() -> None:
    """Adam's first step is as long as the rate, whatever the gradient."""
    optimizer = {"learning_rate": 1e-3, "weight_decay": 0.0, "schedule": {"shape": "constant", "warmup": 0}}
    task = tiny_task(optimizer=optimizer, trunk_lr_ratio=0.1)
    before = {name: weight.clone() for name, weight in task.captioner.state_dict().items()}
    task.train_step([captioned()], 0)
    longest = {"parts": 0.0, "tellers": 0.0}
    for name, weight in task.captioner.state_dict().items():
        change = (weight - before[name]).abs().max().item()
        longest[name.split(".")[0]] = max(longest[name.split(".")[0]], change)
    assert longest["parts"] == pytest.approx(1e-4, rel=1e-2)
    assert longest["tellers"] == pytest.approx(1e-3, rel=1e-2)


def test_bf16_keeps_weights_and_losses_in_fp32() -> None:
    exact, mixed = tiny_task(), tiny_task(precision="bf16")
    for step in range(2):
        first, second = exact.train_step([captioned()], step), mixed.train_step([captioned()], step)
        assert second["loss"].dtype == torch.float32
        assert second["loss"].item() == pytest.approx(first["loss"].item(), rel=2e-2)
    assert {weight.dtype for weight in mixed.captioner.parameters()} == {torch.float32}


# Metrics


def predicted(task: CaptioningTask, batch: Batch, row: Row, rounds: int = 0) -> list[str]:
    captioner = task.ema.module
    config = DecodingConfig(exit_row=row, rounds=rounds)
    return captioner.tokens.texts(decode(captioner.context(batch.images), captioner.tokens, config).captions.ids)


def taught(steps: int, **task: Any) -> CaptioningTask:
    """A task that has seen its eight pairs, so that its rows say different things of them."""
    settings = {"kind": "muon", "learning_rate": 2e-2, "momentum": 0.9, "nesterov": True, "clip_norm": 5.0}
    optimizer = settings | {"schedule": {"warmup": 5}}
    made = tiny_task(steps=steps, optimizer=optimizer, trunk_lr_ratio=1.0, ema={"decay": 0.8}, **task)
    for step in range(steps):
        made.train_step([captioned()], step)
    return made


def test_metrics_are_the_shares_of_captions_that_a_judge_finds_right() -> None:
    task = taught(12, rounds=2)
    task.check_image = lambda image, caption: (image.getpixel((0, 0))[0] + len(caption)) % 3 > 0  # type: ignore[index]
    batches = [part(captioned(), rows) for rows in (slice(0, 5), slice(5, 8))]
    metrics = task.evaluate(batches)

    def right(captions: list[str], batch: Batch) -> int:
        assert task.check_image is not None
        return sum(task.check_image(image, text) for image, text in zip(to_pil(batch.images), captions, strict=True))

    for row in ROWS:
        expected = sum(right(predicted(task, batch, row), batch) for batch in batches) / 8
        assert metrics[f"exact_row_{row}"] == pytest.approx(expected)
    for rounds in (1, 2):
        config = DecodingConfig(rounds=2)
        captioner = task.ema.module
        stages = [decode(captioner.context(batch.images), captioner.tokens, config).stages[rounds] for batch in batches]
        captions = [captioner.tokens.texts(stage.ids) for stage in stages]
        expected = sum(right(one, batch) for one, batch in zip(captions, batches, strict=True)) / 8
        assert metrics[f"exact_round_{rounds}"] == pytest.approx(expected)
    assert task.evaluate(batches) == metrics, "the same drafts every time"


def test_val_nats_are_a_words_mean_and_texts_are_compared_with_the_truth() -> None:
    task = taught(5, rounds=1)
    batches = [part(captioned(), rows) for rows in (slice(0, 5), slice(5, 8))]
    metrics = task.evaluate(batches)
    nats, words, captions = 0.0, 0, []
    for batch in batches:
        read = read_captions(task.captioner.tokens, batch, task._seed, 0, len(batch), 0)
        asked = task.captioner.tokens.predicted(read.ids)
        with torch.no_grad():
            logits = task.ema.module.eval()(batch.images, read.ids, read.noise).logits[3]
        nats += F.cross_entropy(logits[:, :-1][asked[:, 1:]], read.ids[:, 1:][asked[:, 1:]], reduction="sum").item()
        words += int(asked.sum())
        captions += predicted(task, batch, 14, rounds=1)
    assert metrics["nats_row_14"] == pytest.approx(nats / words, rel=1e-5)
    assert not any(name.startswith("exact") for name in metrics), "nobody can tell"
    if can_compare_texts():
        expected = compare_texts(captions, [[caption] for caption in captioned().texts()])
        assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    with pytest.raises(ValueError, match="no validation image"):
        task.evaluate([])


def test_a_preview_shows_captions_and_verdicts(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: dict[str, Any] = {}

    def sheet(random_images: list[Image.Image], captions: list[str], marks: list[bool] | None) -> Image.Image:
        shown.update(random_images=random_images, captions=captions, marks=marks)
        return Image.new("RGB", (8, 8))

    monkeypatch.setattr("parti.fused.captioning.captioning_task.contact_sheet", sheet)
    task = taught(5)
    task.preview(captioned(3))
    assert shown["captions"] == predicted(task, captioned(3), 14, rounds=1)
    assert shown["marks"] is None
    task.check_image = lambda _, caption: caption == shown["captions"][0]
    task.preview(captioned(3))
    assert shown["marks"] == [caption == shown["captions"][0] for caption in shown["captions"]]
    assert len(shown["random_images"]) == 3


def test_diagnosis_names_lost_numbers_and_a_loss_that_is_no_better_than_guessing() -> None:
    task = tiny_task()
    words = int(task.captioner.tokens.visible_words.sum())
    healthy = {"loss": 3.0, "loss_row_14": math.log(words) - 0.1, "run_share": 0.9}
    assert task.diagnose(healthy) == task.diagnose({}) == []
    assert task.diagnose(healthy | {"loss_row_14": 9.0, "run_share": 0.05}) == [], "it has just begun"
    cases = {
        "not finite: loss;": healthy | {"loss": math.nan},
        "6.0% of the steps had no finite gradient": healthy | {"skipped_share": 0.06},
        f"loss_row_14 9.000 is no better than guessing among {words} tokens": healthy | {"loss_row_14": 9.0},
    }
    check_findings(task.diagnose, cases, CaptioningTaskConfig)


# Learning


@pytest.mark.slow
def test_overfits_a_batch_of_eight_in_every_row() -> None:
    """Each of the eight images gets its own caption, behind every row, with refinement and without."""
    task = taught(80, width=32, losses={"attention_balance": 0.0})
    for row in ROWS:
        assert predicted(task, captioned(), row) == captioned().texts(), row
    assert predicted(task, captioned(), 14, rounds=4) == captioned().texts()


# Starting from a trunk


def pretrained(folder: Path, tokenizer: TextTokenizer) -> dict[str, Tensor]:
    trunk = {name: value for name, value in MODEL.items() if name != "attention_width"}
    network = InpaintingNetwork(validate(TrunkConfig, trunk, "test"), text_space(tokenizer))
    torch.manual_seed(5)
    for weight in network.parameters():
        nn.init.normal_(weight)
    Inpainter(network, tokenizer).save_pretrained(folder / "model")
    return {name: weight.clone() for name, weight in network.trunk.parts.state_dict().items()}


def test_a_run_starts_from_the_pretraining_model(tmp_path: Path) -> None:
    """Decision 15 of papers.md E.6: convolutions 1-11, BertLayers 4-14, fusions and embeddings; not BertLayers 1-3."""
    tokenizer = tiny_text_tokenizer()
    theirs = pretrained(tmp_path / "trunk", tokenizer)
    config = run_config(tmp_path / "run")
    folder = str(tmp_path / "trunk")
    fresh = build_task(config, build_accelerator(), tokenizer).captioner.parts.state_dict()
    config = config.model_copy(update={"start_from": folder})
    parts = build_task(config, build_accelerator(), tokenizer).captioner.parts.state_dict()
    assert all(torch.equal(weight, theirs[name]) for name, weight in parts.items())
    assert any(not torch.equal(weight, fresh[name]) for name, weight in parts.items())
    assert {int(name.split(".")[1]) for name in parts if name.startswith("image.")} == {1, 2, 3, 4, 11}
    assert {int(name.split(".")[1]) for name in parts if name.startswith("text.")} == {4, 11, 12, 13, 14}


def test_configs_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    good = run_config(tmp_path).model_dump(mode="json")
    cases: dict[str, dict[str, Any]] = {
        "data.transform.image_size 64 and model.image_size 32 differ": {
            "data": good["data"] | {"transform": {"image_size": 64}}
        },
        "text.dropout 0.1: a captioner tells whole words": {"text": good["text"] | {"dropout": 0.1}},
        "start_from 'elsewhere' was trained with its own vocabulary": {"start_from": "elsewhere"},
        "model.text.bert 'bert' was trained with its own tokenizer": {
            "model": good["model"] | {"text": good["model"]["text"] | {"bert": "bert"}}
        },
    }
    for message, values in cases.items():
        with pytest.raises(ConfigError, match=re.escape(message)):
            validate(TrainCaptioningConfig, good | values, "test")


# Runs


def results(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Weights at the end, and the metrics without timings."""
    state = torch.load(folder / "checkpoints" / "step-0000004" / "state.pt", weights_only=True)
    timings = ("seconds", "images_per_second")
    records = RunFolder(folder).read_metrics()
    return state, [{name: value for name, value in record.items() if name not in timings} for record in records]


def test_a_run_that_was_stopped_gives_the_run_that_was_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dropout = {"text": MODEL["text"] | {"dropout": 0.2}}
    assert train(run_config(tmp_path / "straight", model=dropout))
    should_stop = TrainingLoop._should_stop

    def stopping(loop: TrainingLoop, done: int) -> bool:
        loop._stop.made |= done == 2 and not (tmp_path / "stopped" / "checkpoints").exists()
        return should_stop(loop, done)

    monkeypatch.setattr(TrainingLoop, "_should_stop", stopping)
    assert not train(run_config(tmp_path / "stopped", model=dropout))
    torch.manual_seed(12345)
    assert train(run_config(tmp_path / "stopped", model=dropout))
    (state, records), (other_state, other_records) = (results(tmp_path / name) for name in ("straight", "stopped"))
    assert records == other_records
    assert state.keys() == other_state.keys() >= {"captioner", "ema", "optimizer"}
    for name in ("captioner", "ema"):
        assert all(torch.equal(weight, other_state[name][key]) for key, weight in state[name].items())
    val = records[-1]
    assert {f"exact_row_{row}" for row in ROWS} | {"exact_round_1", "nats_row_14"} <= val.keys()
    with Image.open(tmp_path / "stopped" / "samples" / "step-0000004.png") as image:
        assert image.width > 2 * 32
    shipped = Captioner.from_pretrained(tmp_path / "stopped").state_dict()
    assert all(torch.equal(shipped[name], weight) for name, weight in state["ema"].items())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_config_loads_and_is_built(path: Path, tmp_path: Path) -> None:
    config = load_config(TrainCaptioningConfig, path)
    (tmp_path / "again.yaml").write_text(dump_config(config))
    assert load_config(TrainCaptioningConfig, tmp_path / "again.yaml") == config
    if config.model.text.bert is not None:
        generated = CaptionerConfig(text=TextSideConfig(bert=config.model.text.bert))
        assert config.model == generated, "built in test_captioner.py"
        return
    captions = list(DataPipeline(config.data, config.seed).captions(300))
    task = build_task(config, build_accelerator(), build_text_tokenizer(config.text, lambda _: captions))
    assert not any(task.captioner.tokens.encode(captions).cut), "what is cut off cannot be learned"


def test_there_are_configs() -> None:
    assert {path.name for path in CONFIGS} == {"fused_captioning.yaml", "fused_captioning_shapes.yaml"}
