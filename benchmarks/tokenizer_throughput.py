"""Images a second of our tokenizers beside public ones of the same size: encode + decode, and training steps.

python benchmarks/tokenizer_throughput.py --threads 2 --json out/tokenizer_throughput.json

ViT-VQGAN beside `parti-pytorch`'s VitVQGanVAE: same image, patch, width, heads, depth on each side, codebook size and
width of a code. Its default look-up-free quantizer has a row of its own. Three comparisons:

- encode + decode, in evaluation mode and without gradients, by the networks' own forward;
- a training step without discriminator and feature net. Ours is the whole step of training, with averaged weights,
  care of the codebook and its metrics; the peer's is what its trainer does: loss, backward, Adam;
- a training step of both players with VGG16 and a discriminator of about as many parameters and operations as the
  peer's. `ours, the peer's way` does what the peer does: hinge, adaptive weight, a gradient penalty at every step.
  `ours` is the ViT-VQGAN paper's step: non-saturating, fixed weight, R1 at every 16th step, counted with that share.
  Our LPIPS compares five layers of VGG16, the peer the output of its last but one linear layer. Our penalty is fp32
  under bf16 as well, the peer's is bf16.

CNN VQGAN beside `diffusers.VQModel`, which has no training step of its own: same channels, levels, blocks, attention
and codebook, and for both reconstruction + commitment loss, backward and AdamW.

Within a comparison and a precision all contenders run in turn, `times ours` is the median of the rounds' ratios of
seconds (above 1: slower than `ours`). bf16 is autocast. On a GPU every contender also has a row with its encoder and
decoder compiled. Images are noise and weights untrained: neither changes the time. A peer that is not installed has
no rows. Needs the extra `benchmarks`.
"""

import argparse
import importlib.util
import json
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from measure import Timing, side_by_side
from tokenizer_baselines import (
    R1_EVERY,
    Baseline,
    Call,
    Setting,
    cnn_config,
    our_cnn_step,
    our_reconstruction,
    our_task,
    parti_pytorch_reconstruction,
    parti_pytorch_step,
    vit_config,
    vq_model_reconstruction,
    vq_model_step,
)

from vqgan.system.host_memory import keep_freed_memory

Build = Callable[[Setting], Baseline]

OURS, OURS_WITH_R1, PEERS_WAY = "ours", "ours, a step with R1", "ours, the peer's way"
PARTI, PARTI_FREE, DIFFUSERS = "parti-pytorch", "parti-pytorch, look-up-free", "diffusers VQModel"
PACKAGES = {PARTI: "parti_pytorch", PARTI_FREE: "parti_pytorch", DIFFUSERS: "diffusers"}
COMPARISONS: dict[str, dict[str, Build]] = {
    "ViT: encode + decode": {
        OURS: lambda setting: our_reconstruction(vit_config(setting), setting),
        PARTI: partial(parti_pytorch_reconstruction, look_up_free=False),
        PARTI_FREE: partial(parti_pytorch_reconstruction, look_up_free=True),
    },
    "ViT: step, reconstruction": {
        OURS: partial(our_task, peers_way=False, players=False, step=1),
        PARTI: partial(parti_pytorch_step, players=False, look_up_free=False),
        PARTI_FREE: partial(parti_pytorch_step, players=False, look_up_free=True),
    },
    "ViT: step, both players": {
        OURS: partial(our_task, peers_way=False, players=True, step=1),
        OURS_WITH_R1: partial(our_task, peers_way=False, players=True, step=0),
        PEERS_WAY: partial(our_task, peers_way=True, players=True, step=1),
        PARTI: partial(parti_pytorch_step, players=True, look_up_free=False),
    },
    "CNN: encode + decode": {
        OURS: lambda setting: our_reconstruction(cnn_config(setting), setting),
        DIFFUSERS: vq_model_reconstruction,
    },
    "CNN: step, reconstruction": {OURS: our_cnn_step, DIFFUSERS: vq_model_step},
}


@dataclass(frozen=True)
class Row:
    """One contender's metrics; `seconds` of one call, a batch."""

    comparison: str
    precision: str
    who: str
    images_per_second: float
    seconds: float
    spread: float
    times_ours: float
    parameters: int
    discriminator_parameters: int


def compare(comparison: str, settings: dict[str, Setting], rounds: int) -> list[Row]:
    """All contenders in turn; `settings` by what is added to a contender's name."""
    baselines: dict[str, Baseline] = {}
    waiting: dict[str, Call] = {}
    for suffix, setting in settings.items():
        for name, build in COMPARISONS[comparison].items():
            if importlib.util.find_spec(PACKAGES.get(name, "vqgan")) is None:
                continue
            torch.manual_seed(0)
            baselines[name + suffix] = build(setting)
            waiting[name + suffix] = setting.finished(baselines[name + suffix].call)
    timings = side_by_side(waiting, rounds)
    for suffix in settings:
        if OURS_WITH_R1 + suffix in timings:
            penalized = timings.pop(OURS_WITH_R1 + suffix)
            timings[OURS + suffix] = amortized(timings[OURS + suffix], penalized)
    return [
        Row(
            comparison=comparison,
            precision=setting.precision,
            who=name,
            images_per_second=timing.rate(setting.batch),
            seconds=timing.median,
            spread=timing.spread,
            times_ours=timing.ratio(timings[OURS]),
            parameters=baselines[name].parameters,
            discriminator_parameters=baselines[name].discriminator_parameters,
        )
        for name, timing in timings.items()
    ]


def amortized(ordinary: Timing, penalized: Timing) -> Timing:
    """The mean step of a run in which every `R1_EVERY`th has the penalty."""
    pairs = zip(ordinary.seconds, penalized.seconds, strict=True)
    return Timing(tuple(((R1_EVERY - 1) * usual + slow) / R1_EVERY for usual, slow in pairs))


def main(argv: list[str]) -> int:
    options = parse(argv)
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    warnings.filterwarnings("ignore")  # the peers' and their libraries'
    for package in sorted({*PACKAGES.values()}):
        if importlib.util.find_spec(package) is None:
            print(f"without {package}: it is not installed", file=sys.stderr)
    on_gpu = torch.cuda.is_available()
    rows = []
    print_head()
    for comparison in options.only or COMPARISONS:
        for precision in options.precisions:
            sizes = {name: getattr(options, name) for name in SIZES}
            setting = partial(Setting, **sizes, precision=precision, device=torch.device("cuda" if on_gpu else "cpu"))
            settings = {"": setting(compiled=False)}
            if on_gpu:  # on a CPU compiling takes longer than all the rest
                settings[", compiled"] = setting(compiled=True)
            found = compare(comparison, settings, options.rounds)
            print_rows(found)
            rows += found
    if options.json:
        record = {key: value for key, value in vars(options).items() if key != "json"}
        record |= {"torch": torch.__version__, "cores": os.cpu_count()}
        record |= {"device": torch.cuda.get_device_name() if on_gpu else "cpu"}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"setting": record, "rows": [asdict(row) for row in rows]}, indent=2) + "\n")
    return 0


SIZES = {
    "image_size": (64, "side of the image"),
    "patch_size": (8, "side of a ViT's patch"),
    "width": (128, "of both ViTs, a multiple of 32"),
    "depth": (4, "blocks of each side of both ViTs"),
    "codes": (2048, "codes of every codebook, a power of two"),
    "channels": (32, "of both CNNs at the full image, a multiple of 32"),
    "batch": (8, "images"),
}


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, (default, meaning) in SIZES.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default, help=f"{meaning} [{default}]")
    parser.add_argument("--precisions", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    parser.add_argument("--only", nargs="+", choices=list(COMPARISONS), metavar="COMPARISON", help="[all]")
    parser.add_argument("--rounds", type=int, default=4, help="interleaved rounds [4]")
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch [2]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the metrics there too")
    return parser.parse_args(argv)


def print_head() -> None:
    heads = f"{'images/s':>10}{'spread':>8}{'times ours':>12}{'params':>9}{'D params':>10}"
    print(f"{'comparison':28}{'':6}{'who':40}{heads}")


def print_rows(rows: list[Row]) -> None:
    for row in rows:
        sizes = f"{row.parameters / 1e6:8.2f}M{row.discriminator_parameters / 1e6:9.2f}M"
        speed = f"{row.images_per_second:10.1f}{row.spread:8.1%}{row.times_ours:12.2f}"
        print(f"{row.comparison:28}{row.precision:6}{row.who:40}{speed}{sizes}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
