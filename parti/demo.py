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
from pathlib import Path

import torch
from PIL import Image
from pydantic import Field

from parti.evaluation import CheckedImage, check_images, evaluate_prompts
from parti.next_token.train_next_token import TrainPartiConfig
from parti.next_token.train_next_token import train as train_parti
from parti.pipeline import TextToImage
from parti.report.page import Report, render
from vqgan.config.options import Option, read_options
from vqgan.config.schema import Config, apply_options, load_config, read_yaml
from vqgan.contact_sheet import comparison_sheet, contact_sheet
from vqgan.data.images.transforms import to_pil
from vqgan.data.loader import DataConfig, DataPipeline
from vqgan.data.sources.open_source import open_source
from vqgan.data.sources.shapes import Shapes
from vqgan.errors import ConfigError
from vqgan.evaluation import evaluate_tokenizer
from vqgan.metrics.caption_checkers import caption_checker
from vqgan.report.records import training_seconds
from vqgan.train_tokenizer import TrainVQGANConfig
from vqgan.train_tokenizer import train as train_vqgan
from vqgan.training.checkpoints.store import Checkpoints
from vqgan.training.parallel.distributed import build_accelerator
from vqgan.training.parallel.seeding import SEEDS
from vqgan.training.run_folder import RunFolder

SHOWN_SAMPLES, SHOWN_RECONSTRUCTIONS = 48, 16
"""Number of images on the page and on the sheets."""

Say = Callable[[str], None]


class DemoConfig(Config):
    """What is trained, how much is judged, and where everything goes."""

    out: str = "out/demo"
    """For the runs, the report, the images and the metrics."""
    seed: int = Field(0, ge=0, lt=SEEDS)
    """Of both stages."""
    prompts: int = Field(256, ge=2)
    """Validation prompts that are drawn, one image each, and judged; at least 2."""
    vqgan_config: str = "vqgan/shapes"
    """Settings of stage 1: a YAML file or the name of a shipped config."""
    parti_config: str = "parti/shapes"
    """Settings of stage 2, likewise."""
    vqgan: TrainVQGANConfig
    """Stage 1, as in that file."""
    parti: TrainPartiConfig
    """Stage 2, as in that file."""


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


def load_demo(options: Sequence[Option]) -> DemoConfig:
    """Both configurations, read and checked before anything is trained.

    Options of a stage have it in front: `--vqgan.loop.steps 100`. Raises ConfigError: one line.
    """
    given = read_options(options, DemoConfig)
    fields = DemoConfig.model_fields
    out, seed = Path(given.get("out", fields["out"].default)), given.get("seed", 0)
    folder = given.get("vqgan.run_dir", str(out / "vqgan"))
    stages = {name: read_yaml(given.get(f"{name}_config", f"{name}/shapes")) for name in ("vqgan", "parti")}
    defaults = {name: values | {"run_dir": str(out / name), "seed": seed} for name, values in stages.items()}
    defaults["parti"]["image_tokenizer"] = folder
    demo = apply_options(DemoConfig, None, given, defaults)
    for config in (demo.vqgan, demo.parti):
        if caption_checker(config.data.source) is None:
            raise ConfigError(
                f"the demo judges images, and only those of shapes can be judged, not of {config.data.source.kind}; "
                "train other data with parti train"
            )
        _check_same_run(config, RunFolder(config.run_dir))
    return demo


def run_demo(demo: DemoConfig, started: float, say: Say) -> dict[str, float] | None:
    """Train what is missing, judge, write the files. What metrics.json holds; None when training was interrupted.

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


def train_stages(demo: DemoConfig, started: float, say: Say) -> tuple[StageTime, StageTime] | None:
    """Train both stages as far as they are not; None when interrupted. The first one's time counts from `started`."""

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


def evaluate(demo: DemoConfig) -> DemoResult:
    """The shipped model, and the image tokenizer inside of it, on validation captions and images."""
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


def write_files(demo: DemoConfig, findings: DemoResult, metrics: Mapping[str, float]) -> None:
    """Both sheets, the page and metrics.json."""
    pairs, samples = findings.reconstructions, findings.samples[:SHOWN_SAMPLES]
    out = Path(demo.out)
    out.mkdir(parents=True, exist_ok=True)
    sheet = comparison_sheet([(original, reconstruction.image) for original, reconstruction in pairs], columns=4)
    sheet.save(out / "reconstructions.png")
    marks = [sample.verdict.correct for sample in samples]
    sheet = contact_sheet([one.image for one in samples], [one.caption for one in samples], columns=8, marks=marks)
    sheet.save(out / "samples.png")
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
    (out / "report.html").write_text(page, encoding="utf-8")
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")


def machine() -> dict[str, str]:
    """Describes the machine, for readers of the times."""
    facts = {"CPU cores": f"{_cores()} ({platform.machine()})", "threads": str(torch.get_num_threads())}
    if torch.cuda.is_available():
        facts["GPU"] = torch.cuda.get_device_name()
    return facts | {"torch": str(torch.__version__), "Python": platform.python_version()}


def _cores() -> int:
    """Returns the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
