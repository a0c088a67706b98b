"""Images a second of the loader alone: from JPEG in a folder, in tar shards and in Parquet to training tensors.

python benchmarks/loader.py --json out/loader.json

Ours beside a plain DataLoader over PIL and torchvision, `webdataset` and `datasets` (benchmarks/loader_baselines.py).
All decode, shuffle, resize with antialiasing, crop to --image-size and batch; captions come along. Every round starts
each loader anew, waits for its first batch and times those that follow, without workers by the processor's clock, with
them by the wall's; the contenders of a form take turns, each round from another one on. `times ours` is the median of
the rounds' ratios of seconds (above 1: slower than `ours`). The images are made once, in --data. A peer that is not
installed has no rows. Needs the extra `benchmarks`.
"""

import argparse
import importlib.util
import json
import os
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from loader_baselines import BASELINES, Batches, Setting
from loader_images import write_data_set
from measure import Timing

PACKAGES = {"webdataset": "webdataset"}


@dataclass(frozen=True)
class Row:
    """One contender's metrics; `seconds` of a round's batches."""

    form: str
    width: int
    height: int
    workers: int
    who: str
    images_per_second: float
    seconds: float
    spread: float
    times_ours: float


def compare(form: str, size: tuple[int, int], setting: Setting, rounds: int, batches: int) -> list[Row]:
    """All contenders of a form in turn."""
    baselines = {
        name: build
        for name, build in BASELINES[form].items()
        if importlib.util.find_spec(PACKAGES.get(name.split(",")[0], "vqgan")) is not None
    }
    names = list(baselines)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds + 1):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            elapsed = seconds_of(baselines[name], setting, batches)
            if turn:  # the first round warms the page cache
                seconds[name].append(elapsed)
    timings = {name: Timing(tuple(times)) for name, times in seconds.items()}
    return [
        Row(
            form=form,
            width=size[0],
            height=size[1],
            workers=setting.workers,
            who=name,
            images_per_second=timing.rate(setting.batch * batches),
            seconds=timing.median,
            spread=timing.spread,
            times_ours=timing.ratio(timings["ours"]),
        )
        for name, timing in timings.items()
    ]


def seconds_of(build: Batches, setting: Setting, batches: int) -> float:
    """Seconds of `batches` batches after the first."""
    torch.manual_seed(0)
    loader = build(setting)
    clock = time.perf_counter if setting.workers else time.process_time
    take(loader, setting)
    start = clock()
    for _ in range(batches):
        take(loader, setting)
    elapsed = clock() - start
    del loader  # its worker ends
    return elapsed


def take(loader: Iterator[Any], setting: Setting) -> None:
    images = next(loader)
    expected = (setting.batch, 3, setting.image_size, setting.image_size)
    if tuple(images.shape) != expected or images.dtype != torch.float32:
        raise RuntimeError(f"a batch is float32 {expected}, received {images.dtype} {tuple(images.shape)}")


def main(argv: list[str]) -> int:
    options = parse(argv)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")  # the peers' and their libraries'
    for package in sorted({*PACKAGES.values()}):
        if importlib.util.find_spec(package) is None:
            print(f"without {package}: it is not installed", file=sys.stderr)
    rows = []
    print(f"{'form':9}{'images':>11}{'workers':>9}  {'who':44}{'images/s':>11}{'spread':>8}{'times ours':>12}")
    for size in options.sizes:
        folder = options.data / f"{size[0]}x{size[1]}-{options.images}"
        write_data_set(folder, size, options.images)
        for form in options.only:
            for workers in options.workers:
                setting = Setting(folder, options.image_size, options.batch, workers)
                found = compare(form, size, setting, options.rounds, options.batches)
                for row in found:
                    what = f"{row.form:9}{f'{row.width}x{row.height}':>11}{row.workers:9}  {row.who:44}"
                    speed = f"{row.images_per_second:11.1f}{row.spread:8.1%}{row.times_ours:12.2f}"
                    print(what + speed, flush=True)
                rows += found
    if options.json:
        record = {key: str(value) for key, value in vars(options).items() if key != "json"}
        record |= {"torch": torch.__version__, "cores": str(os.cpu_count())}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"setting": record, "rows": [asdict(row) for row in rows]}, indent=2) + "\n")
    return 0


def parse_size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    return int(width), int(height)


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = [(500, 375), (1600, 1200), (256, 256)]
    parser.add_argument("--sizes", nargs="+", type=parse_size, default=sizes, metavar="WxH", help="of the JPEGs")
    parser.add_argument("--images", type=int, default=256, help="images in the data set [256]")
    parser.add_argument("--image-size", type=int, default=256, help="side of the training tensor [256]")
    parser.add_argument("--batch", type=int, default=16, help="images in a batch [16]")
    parser.add_argument("--batches", type=int, default=12, help="batches that a round times [12]")
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 1], help="loader processes [0 1]")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds [5]")
    parser.add_argument("--only", nargs="+", choices=list(BASELINES), default=list(BASELINES), metavar="FORM")
    parser.add_argument("--data", type=Path, default=Path("out/loader_images"), help="where the images are made")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the metrics there too")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
