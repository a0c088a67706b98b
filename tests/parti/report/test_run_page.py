"""The page of a run says what its folder holds, whatever of it is missing or damaged, and asks for nothing."""

import re
import shutil
from pathlib import Path

import pytest

from parti.cli.main import main
from parti.next_token.train_next_token import train as train_stage_2
from parti.objectives import OBJECTIVES
from tests.tiny_runs import stage_1, stage_2, untrained_tokenizer
from vqgan.config.not_default import not_default
from vqgan.report.metric_charts import run_charts, spoken
from vqgan.train_tokenizer import TrainVQGANConfig
from vqgan.train_tokenizer import train as train_stage_1
from vqgan.training.run_folder import RunFolder
from vqgan.training.run_report import next_commands


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def first(folder: Path) -> Path:
    """A complete run of stage 1."""
    shown = {"loop.preview_every": 2, "preview_images": 4}
    best = {"loop.keep_best": {"metric": "psnr", "mode": "higher"}}
    assert train_stage_1(stage_1(folder / "first", **shown, **best))
    return folder / "first"


@pytest.fixture(scope="module")
def second(folder: Path) -> Path:
    """A complete run of stage 2."""
    assert train_stage_2(stage_2(folder / "second", untrained_tokenizer(folder / "tokenizer")))
    return folder / "second"


def page_of(*runs: Path, out: Path) -> str:
    assert main(["report", *map(str, runs), "--out", str(out)]) == 0
    return out.read_text(encoding="utf-8")


def text_of(page: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", page.partition("<body>")[2]).split())


def damaged(run: Path, to: Path) -> Path:
    """A copy whose metrics have lines cut off and strange, whose samples and best evaluation are no longer whole."""
    shutil.copytree(run, to, ignore=shutil.ignore_patterns("checkpoints", "report.html"))
    lines = (to / "metrics.jsonl").read_bytes().splitlines()
    strange = [b"\xff\xfe", b'{"step": "x", "split": "train", "loss": "high"}', b'{"loss": 3}', b"[1, 2]"]
    (to / "metrics.jsonl").write_bytes(b"\n".join([lines[0], *strange, *lines[1:-1], lines[-1][:20]]))
    for sheet in (to / "samples").glob("*.png"):
        sheet.write_bytes(sheet.read_bytes()[:200])
    shutil.rmtree(to / "model")
    (to / "best" / "best.json").write_text("{")
    return to


def test_a_complete_run_has_its_page(first: Path) -> None:
    page = (first / "report.html").read_text(encoding="utf-8")
    text = text_of(page)
    for said in ("complete at step 8", "shapes", "32 x 32 pixels", "64 in 8 steps", "best evaluation PSNR"):
        assert said in text
    assert not re.search(r"https?:|@import|url\(|@font-face|<script", page)
    assert page.count("data:image/png;base64,") == 4  # first, middle and last preview, and the codes
    assert "task.optimizer.kind muon" in text
    assert "task.codebook_weight" not in text  # at its default
    assert f"parti evaluate --model {first}" in text
    assert all(name in text for name in ("config.json", "model.safetensors"))


def test_train_and_val_of_a_metric_share_a_chart(second: Path) -> None:
    page = (second / "report.html").read_text(encoding="utf-8")
    chart = page[page.index('aria-label="nats per code"') - 800 : page.index('aria-label="nats per code"')]
    assert re.search(r"</i>train <b>.*</i>val <b>", chart, re.DOTALL)
    assert f"parti sample --model {second}" in text_of(page)


def test_every_metric_is_charted_and_listed(second: Path, first: Path) -> None:
    for run in (first, second):
        records = RunFolder(run).read_metrics()
        splits = {(str(record["split"]), name) for record in records for name in record} - {("train", "seconds")}
        metrics = {one for one in splits if one[0] != "event" and one[1] not in ("step", "split")}
        objective = "image_tokenizer" if run == first else "next_token"
        charts = [chart for group in run_charts(records, objective).values() for chart in group]
        assert len(metrics) == sum(len(chart.lines) for chart in charts) > 5
        text = text_of((run / "report.html").read_text(encoding="utf-8"))
        assert all(f"{spoken(name)}, {split}" in text for split, name in metrics if name != "images_per_second")


def test_what_is_damaged_is_left_out_and_said(first: Path, tmp_path: Path) -> None:
    text = text_of(page_of(damaged(first, tmp_path / "run"), out=tmp_path / "page.html"))
    assert "3 lines of metrics.jsonl could not be read" in text
    assert "There is no model yet" in text
    assert "best evaluation" not in text
    assert "Samples" not in text


def test_a_run_that_has_only_begun(first: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    shutil.copy(first / "config.yaml", tmp_path / "run")
    text = text_of(page_of(tmp_path / "run", out=tmp_path / "page.html"))
    assert "begun, without any metrics yet" in text
    assert f"parti train --config {tmp_path / 'run' / 'config.yaml'}" in text


def test_an_unfinished_run_says_how_far_it_is(first: Path, tmp_path: Path) -> None:
    shutil.copytree(first, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    path = tmp_path / "run" / "metrics.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:1]))
    text = text_of(page_of(tmp_path / "run", out=tmp_path / "page.html"))
    assert "unfinished: at step 3 of 8" in text


def test_two_runs_are_compared(first: Path, second: Path, tmp_path: Path) -> None:
    page = page_of(first, second, out=tmp_path / "page.html")
    text = text_of(page)
    assert "2 runs beside each other" in text
    assert "objective image_tokenizer next_token" in text  # a difference of the settings
    learning_rate = page[: page.index('aria-label="learning rate, train"')].rpartition("<figure")[2]
    assert re.search(r"</i>first <b>.*</i>second <b>", learning_rate, re.DOTALL)


def test_findings_come_with_step_and_remedy(first: Path, tmp_path: Path) -> None:
    shutil.copytree(first, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        for step, usage in ((100, "1%"), (120, "2%")):
            finding = f"only {usage} of <codes> are hit; lower model.quantizer.code_dim"
            file.write(f'{{"step": {step}, "split": "event", "event": "finding", "finding": "{finding}"}}\n')
    page = page_of(tmp_path / "run", out=tmp_path / "page.html")
    assert "only 2% of &lt;codes&gt; are hit" in page
    assert "Step 100, last at step 120, 2 times. What helps: lower model.quantizer.code_dim" in text_of(page)


def test_no_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "config.yaml is missing" in capsys.readouterr().err
    assert main(["report"]) == 2


def test_no_report_where_none_is_wanted(tmp_path: Path) -> None:
    assert train_stage_1(stage_1(tmp_path, **{"loop.report": False, "loop.steps": 2}))
    assert not (tmp_path / "report.html").exists()


def test_a_page_that_fails_costs_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("vqgan.training.run_report.run_page.render_runs", lambda _: 1 / 0)
    assert train_stage_1(stage_1(tmp_path, **{"loop.steps": 2}))
    assert "report.html was not written (ZeroDivisionError" in capsys.readouterr().err


def test_what_is_at_its_default_is_not_listed() -> None:
    assert not_default(TrainVQGANConfig()) == {}
    config = TrainVQGANConfig.model_validate({"seed": 3, "model": {"kind": "cnn_vqgan"}}, strict=False)
    listed = not_default(config)
    assert listed["seed"] == 3
    assert listed["model.kind"] == "cnn_vqgan"


def test_every_objective_has_next_commands() -> None:
    assert next_commands._BY_OBJECTIVE.keys() == OBJECTIVES.keys()
