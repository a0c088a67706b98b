"""tools/demo.py from the command line: tiny runs of both stages, what they leave, resuming, and mistakes."""

import importlib.util
import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from parti import demo as parti_demo
from parti.evaluation import evaluate_prompts
from parti.pipeline import TextToImage
from vqgan.config.options import split_options
from vqgan.data.loader import DataPipeline
from vqgan.data.sources.shapes import Shapes, ShapesConfig, combinations, parse_caption
from vqgan.evaluation import evaluate_tokenizer
from vqgan.metrics.caption_checkers import caption_checker
from vqgan.training.parallel.distributed import build_accelerator

ROOT = Path(__file__).parents[2]
CONFIGS = [f"--{stage}-config={ROOT}/configs/{stage}/shapes.yaml" for stage in ("vqgan", "parti")]
TINY = shlex.split(
    """
    --prompts 6
    --vqgan.loop.steps 6 --vqgan.loop.log_every 2 --vqgan.loop.evaluate_every=3
    --vqgan.data.batch_size 4 --vqgan.data.val_limit 10 --vqgan.data.source.train_size 64
    --vqgan.model.encoder.depth 1 --vqgan.model.decoder.depth 1 --vqgan.model.quantizer.codebook_size 32
    --parti.loop.steps=8 --parti.loop.log_every=4 --parti.data.batch_size=4 --parti.data.val_limit=4
    --parti.text.training_captions 100 --parti.model.encoder_depth 1 --parti.model.decoder_depth 1
    --parti.task.sampled_prompts 2
    """
)


def load_main() -> Callable[[list[str]], int]:
    """`main` of tools/demo.py, which is a script and in no package."""
    spec = importlib.util.spec_from_file_location("tools_demo", ROOT / "tools" / "demo.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


main = load_main()


def words(out: Path) -> list[str]:
    return ["--out", str(out), *CONFIGS, *TINY]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny demonstration."""
    out = tmp_path_factory.mktemp("tiny") / "demo"
    assert main(words(out)) == 0
    return out


def read_metrics(out: Path) -> dict[str, float]:
    return json.loads((out / "metrics.json").read_text(encoding="utf-8"))


def test_it_leaves_runs_metrics_images_and_a_page(out: Path) -> None:
    names = ["metrics.json", "parti", "reconstructions.png", "report.html", "samples.png", "vqgan"]
    assert sorted(path.name for path in out.iterdir()) == names
    metrics = read_metrics(out)
    shares = {"reconstruction_accuracy", "codebook_usage", "prompt_accuracy", "random_pairing_accuracy"}
    counts = {"prompts_checked": 6, "reconstructions_checked": 10, "codebook_size": 32}
    seconds = {"seconds_stage1", "seconds_stage2", "seconds_evaluation", "seconds_total"}
    assert metrics.keys() == shares | counts.keys() | seconds | {"psnr", "codebook_perplexity", "resumed"}
    assert all(0 <= metrics[name] <= 1 for name in shares)
    assert {name: metrics[name] for name in counts} == counts
    assert metrics["resumed"] is False
    parts = sum(metrics[name] for name in seconds) - metrics["seconds_total"]
    assert metrics["seconds_total"] == pytest.approx(parts, abs=0.2)
    page = (out / "report.html").read_text(encoding="utf-8")
    assert f"{metrics['psnr']:.1f} dB" in page
    assert "codebook_size: 32" in page  # the overrides are in the configuration that is shown
    for name in ("samples.png", "reconstructions.png"):
        with Image.open(out / name) as sheet:
            assert sheet.width > 500


def test_the_metrics_are_those_of_the_shipped_model(out: Path) -> None:
    metrics = read_metrics(out)
    demo = parti_demo.load_demo(list(split_options(words(out))))
    model = TextToImage.from_pretrained(out / "parti")
    batches = DataPipeline(demo.vqgan.data, 0).val_batches()
    check_image = caption_checker(demo.vqgan.data.source)
    step_metrics = evaluate_tokenizer(model.image_tokenizer, batches, build_accelerator(), check_image)
    assert step_metrics == {name: metrics[name] for name in step_metrics}

    val = Shapes(ShapesConfig(), "val", 64)
    captions = [str(val[index].caption) for index in range(6)]
    images = [model(caption, seed=seed).images[0] for seed, caption in enumerate(captions)]
    assert evaluate_prompts(images, captions).accuracy == metrics["prompt_accuracy"]


def test_again_it_resumes_trains_nothing_and_says_so(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = read_metrics(out)
    records = (out / "parti" / "metrics.jsonl").read_bytes()
    assert main(words(out)) == 0
    captured = capsys.readouterr()
    assert "vqgan is complete at step 6" in captured.err
    assert "parti is complete at step 8" in captured.err
    assert "resumed: training steps alone" in captured.out
    assert (out / "parti" / "metrics.jsonl").read_bytes() == records
    after = read_metrics(out)
    assert after["resumed"] is True
    assert after["seconds_stage2"] == round(json.loads(records.splitlines()[-2])["seconds"], 1)
    same = {name for name in before if not name.startswith("seconds") and name != "resumed"}
    assert {name: after[name] for name in same} == {name: before[name] for name in same}


def test_the_summary_ends_with_a_line_to_type(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(out)) == 0
    printed = capsys.readouterr().out
    metrics = read_metrics(out)
    assert f"{metrics['psnr']:.2f}  dB" in printed
    for name in ("report.html", "samples.png", "reconstructions.png", "metrics.json"):
        assert str(out / name) in printed
    line = shlex.split(printed.strip().splitlines()[-1])
    assert line[1:6] == ["-m", "parti", "sample", "--model", str(out / "parti")]
    assert line[6] == "--prompt"
    first, _, second = parse_caption(line[7])
    assert (first.color, first.shape, second.color, second.shape) in combinations("val")


def test_other_settings_do_not_go_into_the_same_folder(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words(out), "--seed", "1"]) == 2
    assert capsys.readouterr().err == (
        f"error: {out}/vqgan holds a run of other settings; choose another --out, or remove {out}/vqgan\n"
    )


def test_interrupted_training_ends_it_without_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parti_demo, "train_vqgan", lambda _: False)
    assert main(words(tmp_path / "demo")) == 75
    assert not (tmp_path / "demo" / "metrics.json").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--loop.steps", "3"], "unknown key loop; valid here: out, seed, prompts"),
        (["--parti.loop.stepz", "3"], "unknown key parti.loop.stepz; did you mean parti.loop.steps?"),
        (["--prompts", "1"], "prompts: input should be greater than or equal to 2, received 1"),
        (["--vqgan.data.source", "{kind: folder, path: x}"], "only those of shapes can be judged, not of folder"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_trained(
    given: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--out", str(tmp_path / "demo"), *CONFIGS, *given]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert not (tmp_path / "demo").exists()
