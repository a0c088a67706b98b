"""Time and memory of the nearest-code quantizer beside a matrix product and `vector-quantize-pytorch`.

python benchmarks/quantizer.py --threads 1 --json out/quantizer.json

Like is compared with like. Whole quantizers, from latents to quantized latents, codes and loss: ours and the peer's,
both with l2-normalized look-up and the same codebook, without gradients (the peer in eval mode, or it would also move
its codebook). Searches, from normalized vectors to codes: ours, the peer's codebook, and one matrix product with argmax
over all codes; the product alone is a floor for whoever keeps all scores. `times ours` is within these two kinds.

Seconds are medians of interleaved rounds. Memory is the rise of the peak resident size over one call in a fresh
process (benchmarks/measure.py). The peer is optional: pip install vector-quantize-pytorch.
"""

import argparse
import importlib.util
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from measure import peak_extra_memory, side_by_side
from torch import Tensor

from vqgan.quantizers import NearestConfig, NearestQuantizer
from vqgan.quantizers.search import nearest_codes

WARMUP_VECTORS = 256


def quantizer(codes: int, dim: int) -> NearestQuantizer:
    torch.manual_seed(0)
    return NearestQuantizer(NearestConfig(codebook_size=codes, code_dim=dim))


def our_quantizer(codes: int, dim: int) -> Callable[[Tensor], Tensor]:
    model = quantizer(codes, dim)
    return lambda latents: model(latents).codes


def peer(codes: int, dim: int) -> Any:
    from vector_quantize_pytorch import VectorQuantize

    model = VectorQuantize(dim=dim, codebook_size=codes, use_cosine_sim=True).eval()
    model._codebook.embed.copy_(normalized_codebook(codes, dim))
    return model


def peer_quantizer(codes: int, dim: int) -> Callable[[Tensor], Tensor]:
    model = peer(codes, dim)
    return lambda latents: model(latents)[1]


def peer_search(codes: int, dim: int) -> Callable[[Tensor], Tensor]:
    """Its codebook's part: it normalizes the vectors and fetches their codes' embeddings besides."""
    codebook = peer(codes, dim)._codebook
    return lambda latents: codebook(latents)[1]


def our_search(codes: int, dim: int) -> Callable[[Tensor], Tensor]:
    codebook = normalized_codebook(codes, dim)
    return lambda latents: nearest_codes(latents.flatten(0, 1), codebook)


def product_and_argmax(codes: int, dim: int) -> Callable[[Tensor], Tensor]:
    codebook = normalized_codebook(codes, dim)
    return lambda latents: (latents.flatten(0, 1) @ codebook.T).argmax(-1)


def product_alone(codes: int, dim: int) -> Callable[[Tensor], Tensor]:
    codebook = normalized_codebook(codes, dim)
    return lambda latents: latents.flatten(0, 1) @ codebook.T


def normalized_codebook(codes: int, dim: int) -> Tensor:
    return F.normalize(quantizer(codes, dim).codebook.detach(), dim=-1)


QUANTIZERS = {"quantizer: ours": our_quantizer, "quantizer: vector-quantize-pytorch": peer_quantizer}
SEARCHES = {
    "search: ours": our_search,
    "search: vector-quantize-pytorch": peer_search,
    "search: matrix product + argmax": product_and_argmax,
    "matrix product alone": product_alone,
}
PEERS = {"quantizer: vector-quantize-pytorch", "search: vector-quantize-pytorch"}
CODELESS = {"matrix product alone"}
OURS = {True: "quantizer: ours", False: "search: ours"}
"""What a contender is compared with, by whether it is a whole quantizer."""


@dataclass(frozen=True)
class Row:
    """One contender's metrics; None was not measured."""

    what: str
    seconds: float
    spread: float
    times_ours: float
    extra_bytes: int | None
    memory_times_ours: float | None
    same_codes: float | None


def prepare(
    build: Callable[[int, int], Callable[[Tensor], Tensor]], shape: tuple[int, int, int], codes: int, threads: int
) -> Callable[[], Tensor]:
    """A contender with its inputs, libraries loaded."""
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    call = build(codes, shape[-1])
    # All vectors have length one, so that searches compare what quantizers do.
    latents = F.normalize(torch.randn(shape, generator=torch.Generator().manual_seed(1)), dim=-1)
    call(latents[:1, :WARMUP_VECTORS])
    return lambda: call(latents)


def main(argv: list[str]) -> int:
    options = parse(argv)
    torch.set_grad_enabled(False)
    builders = QUANTIZERS | SEARCHES
    if importlib.util.find_spec("vector_quantize_pytorch") is None:
        builders = {name: build for name, build in builders.items() if name not in PEERS}
        print("without vector-quantize-pytorch: it is not installed", file=sys.stderr)

    shape = (options.batch, options.vectors, options.dim)
    prepared = {
        name: partial(prepare, build, shape, options.codes, options.threads) for name, build in builders.items()
    }
    # Memory first: a process that has nothing but its own contender does not notice what this one holds.
    memory = {} if options.without_memory else {name: peak_extra_memory(build) for name, build in prepared.items()}
    baselines = {name: build() for name, build in prepared.items()}
    agreement = agreement_of_codes({name: call for name, call in baselines.items() if name not in CODELESS})
    timings = side_by_side(baselines, options.rounds)

    rows = []
    for name, timing in timings.items():
        ours = OURS[name in QUANTIZERS]
        rows.append(
            Row(
                what=name,
                seconds=timing.median,
                spread=timing.spread,
                times_ours=timing.ratio(timings[ours]),
                extra_bytes=memory.get(name),
                memory_times_ours=memory[name] / memory[ours] if memory else None,
                same_codes=agreement.get(name),
            )
        )
    print_table(rows)
    if options.json:
        setting = {key: value for key, value in vars(options).items() if key != "json"}
        setting |= {"torch": torch.__version__, "cores": os.cpu_count()}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(
            json.dumps({"setting": setting, "rows": [asdict(row) for row in rows]}, indent=2) + "\n"
        )
    return 0


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default, meaning in [
        ("--batch", 32, "images"),
        ("--vectors", 1024, "vectors an image"),
        ("--dim", 32, "width of a vector"),
        ("--codes", 8192, "codes of the codebook"),
        ("--rounds", 7, "interleaved rounds"),
        ("--threads", 1, "threads of PyTorch"),
    ]:
        parser.add_argument(name, type=int, default=default, help=f"{meaning} [{default}]")
    parser.add_argument("--without-memory", action="store_true", help="seconds alone: memory needs Linux")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the metrics there too")
    return parser.parse_args(argv)


def agreement_of_codes(baselines: dict[str, Callable[[], Tensor]]) -> dict[str, float]:
    """Share of the codes that are those of our search: contenders that do other work must not be compared."""
    codes = {name: call().flatten() for name, call in baselines.items()}
    return {name: (its == codes["search: ours"]).float().mean().item() for name, its in codes.items()}


def print_table(rows: list[Row]) -> None:
    heads = f"{'seconds':>9}{'spread':>8}{'times ours':>12}{'extra memory':>14}{'times ours':>12}{'same codes':>12}"
    print(f"{'what':36}{heads}")
    for row in rows:
        memory = "-" if row.extra_bytes is None else f"{row.extra_bytes / 1e6:.1f} MB"
        times = "-" if row.memory_times_ours is None else f"{row.memory_times_ours:.1f}"
        same = "-" if row.same_codes is None else f"{row.same_codes:.3%}"
        print(
            f"{row.what:36}{row.seconds:9.4f}{row.spread:8.1%}{row.times_ours:12.2f}{memory:>14}{times:>12}{same:>12}"
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
