"""Image tokens a second in training: our stage-2 transformers beside public ones of the same size.

python benchmarks/generator_training.py --tokens 256 --json out/generator_training.json

A step is loss, backward pass and AdamW on given codes, the same optimizer for all, without dropout; no image tokenizer
runs. Three comparisons:

- encoder-decoder of 6 + 6 blocks: transformers' T5, x-transformers' XTransformer with its fused attention;
- the decoder's 6 blocks alone: `parti-pytorch`, whose text encoder is a frozen T5, so that both sides are given what a
  text encoder would say. Its keys and values have one head where ours have eight, its output head is its embedding;
- decoder-only of 12 blocks over text and image, all attention full: `dalle-pytorch` with learned positions and without
  token shift. Its feed-forwards are gated, so half as large again, and its head is over text and codes together.

All contenders of a comparison and a precision run in turn; `times ours` is the median of the rounds' ratios of seconds
(above 1: slower than ours), `spread` half the distance between a contender's quartiles, in parts of its median. bf16 is
autocast. A peer that is not installed has no rows: see benchmarks/sampling.py.
"""

import argparse
import json
import os
import sys
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from generator_baselines import (
    SIZES,
    Sizes,
    count,
    dalle_pytorch,
    installed,
    our_decoder_only,
    our_decoder_with_text_given,
    our_encoder_decoder,
    parti_pytorch,
    t5,
    versions,
    x_transformers,
)
from measure import side_by_side
from torch import Tensor, nn

from parti.models import Generator
from vqgan.system.host_memory import keep_freed_memory

LEARNING_RATE = 3e-4
TEXT_LOSS_SHARE = 1 / 8

Loss = tuple[nn.Module, Callable[[], Tensor]]


@dataclass(frozen=True)
class Trainer:
    """A whole training step, and the parameters that it updates."""

    step: Callable[[], object]
    parameters: int


def train(model: nn.Module, loss: Callable[[], Tensor], autocast: Callable[[], AbstractContextManager[Any]]) -> Trainer:
    """Loss, backward pass and AdamW, the same for all."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)

    def step() -> None:
        with autocast():
            total = loss()
        total.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return Trainer(step, count(model))


def our_loss(build: Callable[[Sizes], Generator], sizes: Sizes) -> Loss:
    model, captions, images = build(sizes), sizes.captions(), sizes.images()

    def loss() -> Tensor:
        logits = model(captions, images)
        total = F.cross_entropy(logits.image.flatten(0, 1), images.flatten())
        if logits.text is None:
            return total
        of_text = F.cross_entropy(logits.text.flatten(0, 1), captions.flatten())
        return TEXT_LOSS_SHARE * of_text + (1 - TEXT_LOSS_SHARE) * total

    return model, loss


def t5_loss(sizes: Sizes) -> Loss:
    model, captions, images = t5(sizes), sizes.captions(), sizes.images()
    return model, lambda: model(input_ids=captions, labels=images).loss


def parti_pytorch_loss(sizes: Sizes) -> Loss:
    model, images = parti_pytorch(sizes), sizes.images()
    embeddings = torch.randn(sizes.batch, sizes.text_tokens, sizes.width)
    mask = torch.ones(sizes.batch, sizes.text_tokens, dtype=torch.bool)
    return model, lambda: model(text_token_embeds=embeddings, text_mask=mask, image_token_ids=images, return_loss=True)


def dalle_pytorch_loss(sizes: Sizes) -> Loss:
    model, captions, images = dalle_pytorch(sizes), sizes.captions(), sizes.images()
    return model, lambda: model(captions, images, return_loss=True)


def x_transformers_loss(sizes: Sizes) -> Loss:
    """It reads the whole row and predicts all of it but the first token, which stands for our start token."""
    model, captions = x_transformers(sizes), sizes.captions()
    row = F.pad(sizes.images(), (1, 0))
    return model, lambda: model(captions, row)


OURS, PARTI, T5, X_TRANSFORMERS, DALLE = "ours", "parti-pytorch", "transformers T5", "x-transformers", "dalle-pytorch"
COMPARISONS: dict[str, dict[str, Callable[[Sizes], Loss]]] = {
    "encoder-decoder": {
        OURS: partial(our_loss, our_encoder_decoder),
        T5: t5_loss,
        X_TRANSFORMERS: x_transformers_loss,
    },
    "encoder-decoder, text given": {
        OURS: partial(our_loss, our_decoder_with_text_given),
        PARTI: parti_pytorch_loss,
    },
    "decoder-only": {OURS: partial(our_loss, our_decoder_only), DALLE: dalle_pytorch_loss},
}


@dataclass(frozen=True)
class Row:
    """One contender's metrics; `seconds` of one step."""

    comparison: str
    precision: str
    image_tokens: int
    who: str
    tokens_per_second: float
    seconds: float
    spread: float
    times_ours: float
    parameters: int


def compare(comparison: str, sizes: Sizes, precision: str, rounds: int) -> list[Row]:
    """All contenders that are installed, in turn."""
    autocast = partial(torch.autocast, "cpu", torch.bfloat16, enabled=precision == "bf16")
    trainers: dict[str, Trainer] = {}
    for name, build in COMPARISONS[comparison].items():
        if installed(name):
            torch.manual_seed(0)
            trainers[name] = train(*build(sizes), autocast)
    timings = side_by_side({name: trainer.step for name, trainer in trainers.items()}, rounds)
    return [
        Row(
            comparison=comparison,
            precision=precision,
            image_tokens=sizes.image_tokens,
            who=name,
            tokens_per_second=timing.rate(sizes.batch * sizes.image_tokens),
            seconds=timing.median,
            spread=timing.spread,
            times_ours=timing.ratio(timings[OURS]),
            parameters=trainers[name].parameters,
        )
        for name, timing in timings.items()
    ]


def main(argv: list[str]) -> int:
    options = parse(argv)
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    warnings.filterwarnings("ignore")  # the peers' and their libraries'
    size = {name: getattr(options, name) for name in SIZES}
    print(f"batch {options.batch}, {', '.join(f'{name} {value}' for name, value in size.items())}")
    print(f"threads {options.threads}; {versions([OURS, PARTI, T5, X_TRANSFORMERS, DALLE])}")
    print(f"{'comparison':28} tokens  {'':6}{'who':18}  tokens/s  spread  times ours   params")
    rows = []
    for image_tokens in options.tokens:
        sizes = Sizes(**size, image_tokens=image_tokens, batch=options.batch)
        for comparison in options.only or COMPARISONS:
            for precision in options.precisions:
                found = compare(comparison, sizes, precision, options.rounds)
                print_rows(found)
                rows += found
    if options.json:
        record = {key: value for key, value in vars(options).items() if key != "json"}
        record |= {"torch": torch.__version__, "cores": os.cpu_count()}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"setting": record, "rows": [asdict(row) for row in rows]}, indent=2) + "\n")
    return 0


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, (default, meaning) in SIZES.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default, help=f"{meaning} [{default}]")
    parser.add_argument("--tokens", type=int, nargs="+", default=[256, 1024], help="codes of an image [256 1024]")
    parser.add_argument("--batch", type=int, default=8, help="images [8]")
    parser.add_argument("--precisions", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    parser.add_argument("--only", nargs="+", choices=list(COMPARISONS), help="[all]")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds [5]")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch [1]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the metrics there too")
    return parser.parse_args(argv)


def print_rows(rows: list[Row]) -> None:
    for row in rows:
        what = f"{row.comparison:28}{row.image_tokens:7}  {row.precision:6}{row.who:18}"
        speed = f"{row.tokens_per_second:10.1f}{row.spread:8.1%}{row.times_ours:12.2f}"
        print(f"{what}{speed}{row.parameters / 1e6:8.2f}M", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
