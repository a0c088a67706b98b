"""Tokens a second in drawing: our stage-2 transformers beside public ones of the same size, and beside the memory.

python benchmarks/sampling.py --tokens 256 --batch 1 --json out/sampling_256_1.json
python benchmarks/sampling.py --tokens 1024 --batch 1 --json out/sampling_1024_1.json

Text in, codes out: no image is decoded. Random weights, captions all different, plain sampling. Contenders:

- ours: encoder-decoder of 6 + 6 blocks and decoder-only of 12, `generate_codes` in fp32, bf16 and int8;
- transformers' T5, 6 + 6 blocks, `generate` with its default cache (its static one is slower here), fp32 and bf16. Its
  `guidance_scale` is for models without an encoder, so guidance is a doubled batch with a logits processor;
- `parti-pytorch`, the decoder's 6 blocks alone (text embeddings are given, where it runs a frozen T5). Its `generate`
  has no cache and is always guided, in two passes. A whole image would take many minutes, so one step in the middle
  of each chunk is timed and counts for the chunk (benchmarks/interleave.py: up to 1% in its favor);
- `dalle-pytorch`, decoder-only of 12 blocks, beside ours of that kind: `generate_images` with its cache, which it uses
  with guidance only (without, each step recomputes all), and with the options that are fastest here.

An image is drawn in chunks, and every round draws the same chunk with every contender, in turn. `times ours` is the
ratio of the whole images' seconds (above 1: slower): of a peer against ours of the same kind and precision, of ours
in bf16 and int8 against fp32; `chunks` is the median of the chunks' ratios and `spread` half the distance between their
quartiles, in parts of it. `of the floor` is the least time that memory allows the steps of a chunk over the time that
they took (benchmarks/bandwidth.py), at the bandwidth of the same round, the median of the rounds.

On a busy machine `--clock cpu` leaves out the time that others had; on an idle one it says the same.

Needs the extra `benchmarks`; a peer that is not installed has no rows. dalle-pytorch asks for packages that no longer
install and that drawing does not use: `pip install -c constraints.txt --no-deps dalle-pytorch
axial-positional-embedding rotary-embedding-torch`.
"""

import argparse
import json
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from bandwidth import Bandwidth
from generator_baselines import SIZES, Sizes, installed, our_decoder_only, our_encoder_decoder, versions
from interleave import chunk_ends, interleave, share_one_heap, spread_of_ratios, whole_ratio
from measure import Timing
from sampling_baselines import GUIDANCE, Baseline, sample_dalle_pytorch, sample_ours, sample_parti_pytorch, sample_t5

from parti.sampling.packed_weights import Precision
from vqgan.system.host_memory import keep_freed_memory

Kind = Literal["encoder-decoder", "decoder-only"]
KINDS: list[Kind] = ["encoder-decoder", "decoder-only"]
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True)
class Entry:
    """`ours`: the contender that it is set against. `package`: as `installed` knows it."""

    kind: Kind
    precision: Precision
    ours: str
    build: Callable[[Sizes, bool], Baseline]
    package: str = "ours"
    guided_only: bool = False


def ours(kind: Kind, precision: Precision) -> Entry:
    build = our_encoder_decoder if kind == "encoder-decoder" else our_decoder_only
    return Entry(kind, precision, f"ours, {kind}, fp32", partial(sample_ours, build, precision=precision))


ENTRIES: dict[str, Entry] = {
    "ours, encoder-decoder, fp32": ours("encoder-decoder", "fp32"),
    "ours, encoder-decoder, bf16": ours("encoder-decoder", "bf16"),
    "ours, encoder-decoder, int8": ours("encoder-decoder", "int8"),
    "transformers T5, fp32": Entry(
        "encoder-decoder",
        "fp32",
        "ours, encoder-decoder, fp32",
        partial(sample_t5, dtype=torch.float32),
        "transformers T5",
    ),
    "transformers T5, bf16": Entry(
        "encoder-decoder",
        "bf16",
        "ours, encoder-decoder, bf16",
        partial(sample_t5, dtype=torch.bfloat16),
        "transformers T5",
    ),
    "parti-pytorch, fp32": Entry(
        "encoder-decoder",
        "fp32",
        "ours, encoder-decoder, fp32",
        sample_parti_pytorch,
        "parti-pytorch",
        guided_only=True,
    ),
    "ours, decoder-only, fp32": ours("decoder-only", "fp32"),
    "ours, decoder-only, bf16": ours("decoder-only", "bf16"),
    "ours, decoder-only, int8": ours("decoder-only", "int8"),
    "dalle-pytorch, fp32": Entry(
        "decoder-only", "fp32", "ours, decoder-only, fp32", sample_dalle_pytorch, "dalle-pytorch", guided_only=True
    ),
}


@dataclass(frozen=True)
class Row:
    """One contender's metrics; `seconds` of all images of the batch, `of_floor` for ours alone."""

    image_tokens: int
    batch: int
    guided: bool
    who: str
    tokens_per_second: float
    seconds: float
    times_ours: float
    chunks_times_ours: float
    spread: float
    of_floor: float | None
    parameters: int


def compare(
    names: list[str], sizes: Sizes, guided: bool, chunks: int, clock: Callable[[], float], megabytes: int
) -> tuple[list[Row], Bandwidth]:
    """All of these contenders in turn; `megabytes` of matrices for the bandwidth."""
    rows = 2 * sizes.batch if guided else sizes.batch
    captions = sizes.batch + 1 if guided else sizes.batch
    drawers = {}
    for name in names:
        torch.manual_seed(0)
        drawers[name] = ENTRIES[name].build(sizes, guided)
    bandwidth = Bandwidth(rows, megabytes, clock)
    ends = chunk_ends(sizes.image_tokens, chunks)
    baselines = {name: drawer.baseline for name, drawer in drawers.items()}
    timings = interleave(baselines, ends, clock, between=bandwidth.measure)

    found = []
    for name, timing in timings.items():
        entry, reference = ENTRIES[name], timings[ENTRIES[name].ours]
        seconds = sum(timing.seconds)
        found.append(
            Row(
                image_tokens=sizes.image_tokens,
                batch=sizes.batch,
                guided=guided,
                who=name,
                tokens_per_second=sizes.batch * sizes.image_tokens / seconds,
                seconds=seconds,
                times_ours=whole_ratio(timing, reference),
                chunks_times_ours=timing.ratio(reference),
                spread=spread_of_ratios(timing, reference),
                of_floor=of_floor(entry, sizes, rows, captions, timing, bandwidth) if entry.package == "ours" else None,
                parameters=drawers[name].parameters,
            )
        )
    return found, bandwidth


def of_floor(entry: Entry, sizes: Sizes, rows: int, captions: int, timing: Timing, bandwidth: Bandwidth) -> float:
    """The least time for its bytes, at the bandwidth of each round, over the round's time: the median of the rounds."""
    size = sizes.encoder_decoder_step() if entry.kind == "encoder-decoder" else sizes.decoder_only_step()
    ends = chunk_ends(sizes.image_tokens, len(timing.seconds))
    shares = []
    for start, end, seconds, rate in zip([0, *ends], ends, timing.seconds, bandwidth.best(), strict=False):
        shares.append((end - start) * size.bytes(entry.precision, rows, captions, start, end) / rate / seconds)
    return statistics.median(shares)


def baselines_of(kinds: list[Kind], guided: bool) -> list[str]:
    """Those of these kinds that are installed and can draw so."""
    return [
        name
        for name, entry in ENTRIES.items()
        if entry.kind in kinds and installed(entry.package) and (guided or not entry.guided_only)
    ]


def main(argv: list[str]) -> int:
    options = parse(argv)
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    share_one_heap()
    warnings.filterwarnings("ignore")  # the peers' and their libraries'
    size = {name: getattr(options, name) for name in SIZES}
    print(", ".join(f"{name.replace('_', ' ')} {value}" for name, value in size.items()))
    print(f"threads {options.threads}, {options.clock} clock; {versions(dict.fromkeys(PEERS))}")
    rows: list[Row] = []
    rates: list[dict[str, object]] = []
    for image_tokens in options.tokens:
        for batch in options.batch:
            for guided in GUIDED[options.guidance]:
                names = baselines_of(options.kinds, guided)
                sizes = Sizes(**size, image_tokens=image_tokens, batch=batch)
                clock = CLOCKS[options.clock]
                found, bandwidth = compare(names, sizes, guided, options.chunks, clock, options.megabytes)
                print_table(found, bandwidth)
                rows += found
                case = {"image_tokens": image_tokens, "batch": batch, "guided": guided}
                rates.append(case | {"bytes_per_second": bandwidth.rates()})
    if options.json:
        record = {key: value for key, value in vars(options).items() if key != "json"}
        record |= {"torch": torch.__version__, "cores": os.cpu_count()}
        metrics = {"setting": record, "rows": [asdict(row) for row in rows], "bandwidth": rates}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(metrics, indent=2) + "\n")
    return 0


PEERS = [entry.package for entry in ENTRIES.values() if entry.package != "ours"]
GUIDED = {"with": [True], "without": [False], "both": [True, False]}
QUICK = {
    "width": 32,
    "depth": 1,
    "heads": 2,
    "mlp_width": 128,
    "text_tokens": 8,
    "codes": 64,
    "tokens": [16],
    "batch": [2],
    "chunks": 4,
    "megabytes": 8,
}


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, (default, meaning) in SIZES.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default, help=f"{meaning} [{default}]")
    parser.add_argument("--tokens", type=int, nargs="+", default=[256, 1024], help="codes of an image [256 1024]")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8], help="images at a time [1 8]")
    parser.add_argument("--guidance", choices=list(GUIDED), default="both", help="[both]")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="of models [both]")
    parser.add_argument("--chunks", type=int, default=16, help="into which an image is cut for the turns [16]")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="cpu: time of all threads [wall]")
    parser.add_argument("--megabytes", type=int, default=200, help="of matrices, for the bandwidth [200]")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch [1]")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, not how fast")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the metrics there too")
    if "--quick" in argv:
        parser.set_defaults(**QUICK)
    return parser.parse_args(argv)


def print_table(rows: list[Row], bandwidth: Bandwidth) -> None:
    first = rows[0]
    guidance = f"guidance {GUIDANCE:g}" if first.guided else "no guidance"
    rates = ", ".join(f"{name} {rate / 1e9:.1f}" for name, rate in bandwidth.rates().items())
    print(f"\n{first.image_tokens} image tokens, batch {first.batch}, {guidance}; GB/s of products: {rates}")
    print(" " * 30 + "  tokens/s  ms/step  times ours  chunks  spread  of the floor   params")
    for row in rows:
        step = row.seconds / row.image_tokens * 1e3
        ratios = f"{row.times_ours:12.2f}{row.chunks_times_ours:8.2f}{row.spread:8.1%}"
        floor = f"{row.of_floor:14.0%}" if row.of_floor is not None else " " * 14
        speed = f"{row.tokens_per_second:10.1f}{step:9.2f}"
        print(f"{row.who:30}{speed}{ratios}{floor}{row.parameters / 1e6:8.2f}M", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
