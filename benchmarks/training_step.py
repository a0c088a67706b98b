"""Where the time of a stage-1 training step goes: generator, losses, discriminator, penalties, optimizers, upkeep.

python benchmarks/training_step.py --threads 1 --json out/training_step.json
python benchmarks/training_step.py --batch 4 --precisions bf16 --rounds 2 --task.perceptual.backbone vgg \
    --task.perceptual.batch_fraction 1 --task.adversarial.batch_fraction 1 \
    --task.adversarial.discriminator '{kind: stylegan2}'

The second command has the paper's losses: LPIPS on VGG16 and the full StyleGAN2 discriminator, both on all images.
Options that this script does not know override the config, as in training; images are noise and feature weights
untrained, for neither changes the time.

One stopwatch runs through the task's own `train_step`. It changes its label where a part is entered and left, and in a
backward pass where the gradient reaches a part's output: autograd works back in the order in which the forward pass
came, so the parts' backward passes follow each other as well. Every moment has one label, so the parts sum to the step
by construction; what could be wrong is that the stopwatch slows the step. That is measured: `sum of parts` is set
against the step without a stopwatch, in the same rounds. On a GPU the stopwatch waits for the device at each change.

Three kinds of steps are timed: ordinary ones, those with R1, and those that move unused codes. `amortized` counts the
latter two with their share of a run's steps.
"""

import argparse
import json
import math
import os
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from measure import side_by_side
from profiler import PARTS, Profiler, watched

from vqgan.config.schedule import in_steps
from vqgan.config.schema import ConfigError, load_config
from vqgan.data.batch import Batch
from vqgan.system.host_memory import keep_freed_memory
from vqgan.train_tokenizer import TrainVQGANConfig, build_task
from vqgan.training.parallel.distributed import build_accelerator
from vqgan.training.parallel.seeding import seed_everything

CONFIG = Path(__file__).parents[1] / "configs/vqgan/openmoji.yaml"

OF_R1 = {"R1: gradient", "R1: its gradient in the weights"}
OF_CARE = {"moving unused codes"}


@dataclass(frozen=True)
class Kinds:
    """A step of each kind in which both players play, and which share of the steps has that kind's extra part."""

    ordinary: int
    r1: int | None
    maintenance: int | None
    r1_share: float
    care_share: float


def kinds_of_steps(config: TrainVQGANConfig) -> Kinds:
    """Raises ConfigError where the run is too short to have them."""
    task, steps = config.task, config.loop.steps
    maintenance, discriminator_trainer = task.codebook_maintenance, task.adversarial
    playing = (
        in_steps(discriminator_trainer.start, steps) + in_steps(discriminator_trainer.warmup, steps)
        if discriminator_trainer.weight
        else 0
    )
    first = max(playing, in_steps(maintenance.unquantized, steps) + 1)
    r1_every = discriminator_trainer.r1_every if discriminator_trainer.weight and discriminator_trainer.r1_gamma else 0

    def moves(step: int) -> bool:
        return (
            bool(maintenance.restart_every)
            and step % maintenance.restart_every == 0
            and step <= in_steps(maintenance.restart_until, steps)
        )

    def penalized(step: int) -> bool:
        return bool(r1_every) and step % r1_every == 0

    candidates = range(math.ceil(first), steps)
    ordinary = next((step for step in candidates if not penalized(step) and not moves(step)), None)
    if ordinary is None:
        raise ConfigError(
            f"no step of {steps} has all players and no penalty; set loop.steps higher, task.adversarial.start lower "
            "or r1_every to more than 1"
        )
    r1 = next((step for step in candidates if penalized(step) and not moves(step)), None)
    revival = next((step for step in candidates if moves(step) and not penalized(step)), None)
    return Kinds(
        ordinary=ordinary,
        r1=r1,
        maintenance=revival,
        r1_share=0.0 if r1 is None else 1 / r1_every,
        care_share=0.0 if revival is None else 1 / maintenance.restart_every,
    )


@dataclass(frozen=True)
class Row:
    """One part, in milliseconds: of the steps that have it, and with its share of all steps; share of the whole."""

    part: str
    milliseconds: float
    amortized: float
    share: float


@dataclass(frozen=True)
class Table:
    """A precision's metrics. `sum_over_step`: sum of the parts over the same step without a stopwatch."""

    precision: str
    rows: list[Row]
    images_per_second: float
    step_milliseconds: float
    sum_over_step: float
    r1_step_milliseconds: float | None
    r1_sum_over_step: float | None


def measure(config: TrainVQGANConfig, rounds: int) -> Table:
    seed_everything(0, 0)
    task = build_task(config, build_accelerator())
    kinds = kinds_of_steps(config)
    device = task.accelerator.device
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    size = config.model.image_size
    images = torch.rand(config.data.batch_size, 3, size, size, device=device) * 2 - 1
    batches = [
        Batch(part, captions=[""] * len(part), names=[""] * len(part))
        for part in images.chunk(config.loop.gradient_accumulation_steps)
    ]

    def plain(step: int) -> None:
        metrics = task.train_step(batches, step)
        wait()
        if metrics["skipped"]:
            raise RuntimeError(f"step {step} had gradients that are not finite, so it was cut short; use another seed")

    laps: dict[str, list[dict[str, float]]] = defaultdict(list)

    def with_profiler(kind: str, step: int) -> None:
        profiler = Profiler(wait)
        with watched(task, profiler):
            plain(step)
            profiler._lap()
        laps[kind].append(profiler.seconds)

    baselines: dict[str, Callable[[], object]] = {}
    for kind, step in [("ordinary", kinds.ordinary), ("r1", kinds.r1), ("maintenance", kinds.maintenance)]:
        if step is not None:
            baselines[kind] = partial(plain, step)
            baselines[f"{kind}, watched"] = partial(with_profiler, kind, step)
    timings = side_by_side(baselines, rounds)

    def median(part: str, kind: str) -> float:
        return statistics.median(lap.get(part, 0.0) for lap in laps[kind][-rounds:]) * 1e3

    def sum_over_step(kind: str) -> float:
        sums = [sum(lap.values()) for lap in laps[kind][-rounds:]]
        return statistics.median(total / alone for total, alone in zip(sums, timings[kind].seconds, strict=True))

    step_metrics = []
    for part in PARTS:
        kind, share = "ordinary", 1.0
        if part in OF_R1:
            kind, share = "r1", kinds.r1_share
        elif part in OF_CARE:
            kind, share = "maintenance", kinds.care_share
        if share and (milliseconds := median(part, kind)):
            step_metrics.append((part, milliseconds, milliseconds * share))
    whole = sum(amortized for *_, amortized in step_metrics)
    return Table(
        precision=config.task.precision,
        rows=[Row(part, each, amortized, amortized / whole) for part, each, amortized in step_metrics],
        images_per_second=len(images) / whole * 1e3,
        step_milliseconds=timings["ordinary"].median * 1e3,
        sum_over_step=sum_over_step("ordinary"),
        r1_step_milliseconds=timings["r1"].median * 1e3 if kinds.r1 is not None else None,
        r1_sum_over_step=sum_over_step("r1") if kinds.r1 is not None else None,
    )


def main(argv: list[str]) -> int:
    options, overrides = parse(argv)
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    config = load_config(TrainVQGANConfig, options.config, overrides)
    tables = []
    for precision in options.precisions:
        table = measure(in_measure(config, precision, options.batch), options.rounds)
        print_table(table)
        tables.append(table)
    if options.json:
        setting: dict[str, object] = {key: str(value) for key, value in vars(options).items() if key != "json"}
        setting |= {"options": overrides}
        setting |= {"torch": torch.__version__, "cores": os.cpu_count(), "cuda": torch.cuda.is_available()}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        record = {"setting": setting, "tables": [asdict(table) for table in tables]}
        options.json.write_text(json.dumps(record, indent=2) + "\n")
    return 0


def in_measure(config: TrainVQGANConfig, precision: str, batch: int | None) -> TrainVQGANConfig:
    """The config with another precision and batch, and with feature weights that are nowhere fetched."""
    perceptual = config.task.perceptual.model_copy(update={"weights": "random"})
    task = config.task.model_copy(update={"precision": precision, "perceptual": perceptual})
    data = config.data.model_copy(update={"batch_size": batch or config.data.batch_size})
    return config.model_copy(update={"task": task, "data": data})


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", type=Path, default=CONFIG, help="a stage-1 config [openmoji]")
    parser.add_argument("--batch", type=int, help="images a step [the config's]")
    parser.add_argument("--precisions", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    parser.add_argument("--rounds", type=int, default=9, help="interleaved rounds [9]")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch [1]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the metrics there too")
    return parser.parse_known_args(argv)


def print_table(table: Table) -> None:
    print(f"\n{table.precision:36}{'ms':>10}{'amortized':>12}{'share':>8}")
    for row in table.rows:
        print(f"{row.part:36}{row.milliseconds:10.2f}{row.amortized:12.2f}{row.share:8.1%}")
    print(f"{'sum, images/s':36}{sum(row.amortized for row in table.rows):22.2f}{table.images_per_second:8.1f}")
    print(f"{'ordinary step; sum of parts over it':36}{table.step_milliseconds:10.2f}{table.sum_over_step:12.3f}")
    if table.r1_step_milliseconds is not None:
        print(
            f"{'step with R1; sum of parts over it':36}{table.r1_step_milliseconds:10.2f}{table.r1_sum_over_step:12.3f}"
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
