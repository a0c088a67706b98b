"""The demonstration: train both stages on `shapes`, check images of validation prompts, and show all on one page.

The folder gets the runs `vqgan/` and `parti/`, `report.html`, `reconstructions.png`, `samples.png`, `metrics.json`.
Running it again resumes: a complete stage is not trained again.
"""

import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from PIL import Image

from parti.evaluation import CheckedImage, check_images, evaluate_prompts
from parti.next_token.train_next_token import TrainPartiConfig
from parti.next_token.train_next_token import train as train_parti
from parti.pipeline import TextToImage
from parti.report.page import Report, render, training_seconds
from vqgan.config.schema import Config, ConfigError, load_config
from vqgan.contact_sheet import comparison_sheet, contact_sheet
from vqgan.data.images.transforms import to_pil
from vqgan.data.loader import DataConfig, DataPipeline
from vqgan.data.sources.open_source import open_source
from vqgan.data.sources.shapes import Shapes
from vqgan.evaluation import evaluate_tokenizer
from vqgan.metrics.caption_checkers import caption_checker
from vqgan.train_tokenizer import TrainVQGANConfig
from vqgan.train_tokenizer import train as train_vqgan
from vqgan.training.checkpoints.store import Checkpoints
from vqgan.training.parallel.distributed import build_accelerator
from vqgan.training.run_folder import RunFolder

SHOWN_SAMPLES, SHOWN_RECONSTRUCTIONS = 48, 16
"""Number of images on the page and on the sheets."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Demo:
    """Configs of both stages, number of evaluated images, and output folder."""

    out: Path
    vqgan: TrainVQGANConfig
    parti: TrainPartiConfig
    prompts: int


@dataclass(frozen=True)
class DemoResult:
    """Results of the evaluation."""

    metrics: dict[str, float]
    reconstructions: list[tuple[Image.Image, CheckedImage]]
    """The first validation images with their reconstructions."""
    samples: list[CheckedImage]
    """One image of every prompt."""


@dataclass(frozen=True)
class StageTime:
    """Duration of a stage; for a resumed one only the time of its steps is known, from the run's record."""

    seconds: float
    resumed: bool


def load_demo(
    out: str | Path, seed: int, vqgan_config: str, parti_config: str, prompts: int, overrides: Sequence[str] = ()
) -> Demo:
    """Returns both configurations, read and checked before anything is trained.

    `overrides` are dotted options with the stage in front: `--vqgan.loop.steps 100 --parti.data.batch_size=32`.
    Raises ConfigError: one line.
    """
    out = Path(out)
    of_stage = _divide(overrides)
    own = ["--run_dir", str(out / "vqgan"), "--seed", str(seed)]
    vqgan = load_config(TrainVQGANConfig, vqgan_config, own + of_stage["vqgan"])
    own = ["--run_dir", str(out / "parti"), "--seed", str(seed), "--image_tokenizer", vqgan.run_dir]
    parti = load_config(TrainPartiConfig, parti_config, own + of_stage["parti"])
    for config in (vqgan, parti):
        if caption_checker(config.data.source) is None:
            raise ConfigError(
                f"the demo judges images, and only those of shapes can be judged, not of {config.data.source.kind}; "
                "train other data with tools/train_vqgan.py and tools/train_parti.py"
            )
        _check_same_run(config, RunFolder(config.run_dir))
    if prompts < 2:
        raise ConfigError(f"--prompts is at least 2, received {prompts}")
    return Demo(out, vqgan, parti, prompts)


def run_demo(demo: Demo, started: float, say: Say) -> dict[str, float] | None:
    """Trains what is missing, evaluates, and writes the files. Returns the contents of metrics.json; None if
    interrupted.

    `started` is the start of the command (time.monotonic()). Raises the errors of training, one line for the user.
    """
    times = train_stages(demo, started, say)
    if times is None:
        return None
    trained = time.monotonic()
    say("drawing and judging images of validation prompts")
    findings = evaluate(demo)
    stage_1, stage_2 = times
    seconds = {"stage1": stage_1.seconds, "stage2": stage_2.seconds, "evaluation": time.monotonic() - trained}
    seconds["total"] = sum(seconds.values())
    metrics = findings.metrics | {f"seconds_{name}": round(value, 1) for name, value in seconds.items()}
    metrics["resumed"] = stage_1.resumed or stage_2.resumed
    write_files(demo, findings, metrics)
    return metrics


def train_stages(demo: Demo, started: float, say: Say) -> tuple[StageTime, StageTime] | None:
    """Trains the unfinished stages; returns None if interrupted. The time of the first one counts from `started`."""

    def timed(config: TrainVQGANConfig | TrainPartiConfig, train: Callable[[], bool], begin: float) -> StageTime | None:
        run = RunFolder(config.run_dir)
        resumed = bool(Checkpoints(run.checkpoints, keep=1).steps())
        if not train():
            return None
        return StageTime(training_seconds(run.read_metrics()) if resumed else time.monotonic() - begin, resumed)

    say(f"stage 1 of 2: an image tokenizer, {demo.vqgan.loop.steps:,} steps in {demo.vqgan.run_dir}")
    stage_1 = timed(demo.vqgan, lambda: train_vqgan(demo.vqgan), started)
    if stage_1 is None:
        return None
    say(f"stage 2 of 2: a transformer over its codes, {demo.parti.loop.steps:,} steps in {demo.parti.run_dir}")
    stage_2 = timed(demo.parti, lambda: train_parti(demo.parti), time.monotonic())
    return None if stage_2 is None else (stage_1, stage_2)


def evaluate(demo: Demo) -> DemoResult:
    """Evaluates the saved model and its image tokenizer on validation captions and images."""
    accelerator = build_accelerator()
    model = TextToImage.from_pretrained(demo.parti.run_dir).to(accelerator.device)
    tokenizer = model.image_tokenizer

    data = DataPipeline(demo.vqgan.data, demo.vqgan.seed)
    batches = [batch.to(accelerator.device) for batch in data.val_batches()]
    metrics = evaluate_tokenizer(tokenizer, batches, accelerator, caption_checker(demo.vqgan.data.source))
    shown = data.preview_batch(SHOWN_RECONSTRUCTIONS).to(accelerator.device)
    reconstructions = check_images(to_pil(tokenizer.decode(tokenizer.encode(shown.images))), shown.texts())

    prompts = val_captions(demo.parti.data, demo.prompts)
    wanted = [(prompt, seed) for seed, prompt in enumerate(prompts)]
    prompt_evaluation = evaluate_prompts([generated.image for generated in model.stream(wanted)], prompts)
    metrics |= {
        "reconstructions_checked": sum(map(len, batches)),
        "codebook_size": tokenizer.vocab_size,
        "prompt_accuracy": prompt_evaluation.accuracy,
        "prompts_checked": len(prompts),
        "random_pairing_accuracy": prompt_evaluation.random_pairing_accuracy,
    }
    return DemoResult(metrics, list(zip(to_pil(shown.images), reconstructions, strict=True)), prompt_evaluation.checked)


def val_captions(config: DataConfig, count: int) -> list[str]:
    """Returns the first `count` distinct captions of the validation split, or all if there are fewer."""
    source = open_source(config.source, "val", config.transform.image_size, require_captions=True)
    assert isinstance(source, Shapes)  # load_demo accepts nothing else
    captions: dict[str, None] = {}
    for index in range(len(source)):
        if len(captions) == count:
            break
        captions.setdefault(str(source.scene(index)[0]))
    return list(captions)


def write_files(demo: Demo, findings: DemoResult, metrics: Mapping[str, float]) -> None:
    """Writes both sheets, the page and metrics.json."""
    pairs, samples = findings.reconstructions, findings.samples[:SHOWN_SAMPLES]
    demo.out.mkdir(parents=True, exist_ok=True)
    sheet = comparison_sheet([(original, reconstruction.image) for original, reconstruction in pairs], columns=4)
    sheet.save(demo.out / "reconstructions.png")
    marks = [sample.verdict.correct for sample in samples]
    sheet = contact_sheet([one.image for one in samples], [one.caption for one in samples], columns=8, marks=marks)
    sheet.save(demo.out / "samples.png")
    page = render(
        Report(
            metrics=metrics,
            samples=samples,
            reconstructions=pairs,
            vqgan=demo.vqgan,
            vqgan_records=RunFolder(demo.vqgan.run_dir).read_metrics(),
            parti=demo.parti,
            parti_records=RunFolder(demo.parti.run_dir).read_metrics(),
            machine=machine(),
        )
    )
    (demo.out / "report.html").write_text(page, encoding="utf-8")
    (demo.out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")


def machine() -> dict[str, str]:
    """Describes the machine, for readers of the times."""
    facts = {"CPU cores": f"{_cores()} ({platform.machine()})", "threads": str(torch.get_num_threads())}
    if torch.cuda.is_available():
        facts["GPU"] = torch.cuda.get_device_name()
    return facts | {"torch": str(torch.__version__), "Python": platform.python_version()}


def _cores() -> int:
    """Returns the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _divide(overrides: Sequence[str]) -> dict[str, list[str]]:
    """Returns the options of each stage without their prefix. Raises ConfigError for an option of neither."""
    of_stage: dict[str, list[str]] = {"vqgan": [], "parti": []}
    words = iter(overrides)
    for word in words:
        stage, dot, rest = word.removeprefix("--").partition(".")
        if not word.startswith("--") or not dot or stage not in of_stage:
            raise ConfigError(
                f"unexpected {word!r}; a setting is --vqgan.section.field VALUE or --parti.section.field VALUE, "
                "all fields are listed by tools/train_vqgan.py --help and tools/train_parti.py --help"
            )
        of_stage[stage].append(f"--{rest}")
        if "=" not in rest:
            of_stage[stage] += islice(words, 1)
    return of_stage


def _check_same_run(config: Config, run: RunFolder) -> None:
    """Raises ConfigError if the folder holds a run of other settings, whose results would be mislabeled."""
    path = run.path / "config.yaml"
    if not path.is_file():
        return
    try:
        same = load_config(type(config), path) == config
    except ConfigError:  # written by another version
        same = False
    if not same:
        raise ConfigError(f"{run.path} holds a run of other settings; choose another --out, or remove {run.path}")
