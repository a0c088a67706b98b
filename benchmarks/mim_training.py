"""Images a second in masked image modeling: our MAE, SimMIM and BEiT beside transformers' of the same size and weights.

python benchmarks/mim_training.py --json out/mim_training.json

A step is loss, backward pass and AdamW on given images and masks, the same for both sides; BEiT's codes are given. The
weights of theirs are those of ours, exported, so both sides compute the same loss, which is checked first. Both of a
method and a precision run in turn; `times ours` is the median of the rounds' ratios of seconds (above 1: slower than
ours), `spread` half the distance between a contender's quartiles, in parts of its median. bf16 is autocast.
"""

import argparse
import json
import math
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from measure import side_by_side
from torch import Tensor, nn

from parti.mim.backbones import SwinConfig, ViTConfig
from parti.mim.beit import BEiT, BEiTConfig
from parti.mim.export import export_transformers
from parti.mim.mae import MAE, MAEConfig, MAEDecoderConfig
from parti.mim.masking import row_generator
from parti.mim.network import MaskedImageNetwork
from parti.mim.simmim import SimMIM, SimMIMConfig
from parti.mim.targets import to_imagenet
from vqgan.system.host_memory import keep_freed_memory

LEARNING_RATE = 3e-4
CODES = 8192
OURS, THEIRS = "ours", "transformers"
Losses = tuple[MaskedImageNetwork, Callable[[], Tensor], nn.Module, Callable[[], Tensor]]


def mae(options: argparse.Namespace, images: Tensor) -> Losses:
    decoder = MAEDecoderConfig(width=options.width // 2, depth=2, heads=options.heads)
    network = MAE(MAEConfig(encoder=vit(options), decoder=decoder))
    (mask,) = masks(network, len(images))
    noise, pixels = mask.float(), to_imagenet(images)
    other = exported(network, transformers.ViTMAEForPreTraining)

    def ours() -> Tensor:
        errors = (network(images, mask).float() - network.targets(images)).square().mean(-1)
        return (errors * mask).sum() / mask.sum()

    return network, ours, other, lambda: other(pixels, noise=noise).loss


def simmim(options: argparse.Namespace, images: Tensor) -> Losses:
    encoder = SwinConfig(
        image_size=options.image_size,
        width=options.width // 4,
        depths=(2, options.depth),
        heads=(options.heads // 2, options.heads),
        window_size=6,
    )
    network = SimMIM(SimMIMConfig(encoder=encoder, mask_size=options.image_size // 6))
    (mask,) = masks(network, len(images))
    pixels = to_imagenet(images)
    other = exported(network, transformers.SwinForMaskedImageModeling)

    def ours() -> Tensor:
        errors = (network(images, mask).float() - network.targets(images)).abs().mean(-1)
        return (errors * mask).sum() / mask.sum()

    return network, ours, other, lambda: other(pixels, bool_masked_pos=mask).loss


def beit(options: argparse.Namespace, images: Tensor) -> Losses:
    network = BEiT(BEiTConfig(encoder=vit(options), masked_patches=options.masked, smallest_block=4), CODES)
    (mask,) = masks(network, len(images))
    codes, pixels = torch.randint(CODES, (int(mask.sum()),)), to_imagenet(images)
    other = exported(network, transformers.BeitForMaskedImageModeling)
    return (
        network,
        lambda: F.cross_entropy(network(images, mask).float(), codes),
        other,
        lambda: other(pixels, bool_masked_pos=mask, labels=codes).loss,
    )


METHODS = {"mae": mae, "simmim": simmim, "beit": beit}


def vit(options: argparse.Namespace) -> ViTConfig:
    sizes = {name: getattr(options, name) for name in ("image_size", "patch_size", "width", "depth", "heads")}
    return ViTConfig(**sizes)


def masks(network: MaskedImageNetwork, count: int) -> tuple[Tensor, ...]:
    return network.draw_masks([row_generator(0, 0, row) for row in range(count)], torch.device("cpu"))


def exported(network: MaskedImageNetwork, kind: Any) -> nn.Module:
    with tempfile.TemporaryDirectory() as folder:
        export_transformers(network, folder)
        other: nn.Module = kind.from_pretrained(folder, attn_implementation="sdpa", trust_remote_code=False)
    return other


@dataclass(frozen=True)
class Row:
    """One contender's metrics; `seconds` of one step."""

    method: str
    precision: str
    who: str
    images_per_second: float
    seconds: float
    spread: float
    times_ours: float
    parameters: int


def compare(method: str, options: argparse.Namespace, precision: str) -> list[Row]:
    torch.manual_seed(0)
    images = torch.rand(options.batch, 3, options.image_size, options.image_size) * 2 - 1
    network, our_loss, other, their_loss = METHODS[method](options, images)
    ours, theirs = our_loss().item(), their_loss().item()
    if not math.isclose(ours, theirs, rel_tol=1e-4):
        raise SystemExit(f"{method}: our loss is {ours}, theirs {theirs}: these are not the same networks")
    autocast = partial(torch.autocast, "cpu", torch.bfloat16, enabled=precision == "bf16")
    steps = {}
    for name, module, loss in ((OURS, network, our_loss), (THEIRS, other, their_loss)):
        steps[name] = trainer(module.train(), loss, autocast)
    timings = side_by_side(steps, options.rounds)
    return [
        Row(
            method=method,
            precision=precision,
            who=name,
            images_per_second=timing.rate(options.batch),
            seconds=timing.median,
            spread=timing.spread,
            times_ours=timing.ratio(timings[OURS]),
            parameters=sum(weight.numel() for weight in module.parameters()),
        )
        for (name, timing), module in zip(timings.items(), (network, other), strict=True)
    ]


def trainer(module: nn.Module, loss: Callable[[], Tensor], autocast: Callable[[], Any]) -> Callable[[], object]:
    trained = [weight for weight in module.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, fused=True)

    def step() -> None:
        with autocast():
            total = loss()
        total.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def main(argv: list[str]) -> int:
    options = parse(argv)
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    print(f"images of {options.image_size}, batch {options.batch}, threads {options.threads}; {versions}")
    print(f"{'method':8}{'':6}{'who':14}  images/s  spread  times ours   params")
    rows = []
    for method in options.only or METHODS:
        for precision in options.precisions:
            for row in compare(method, options, precision):
                speed = f"{row.images_per_second:10.1f}{row.spread:8.1%}{row.times_ours:12.2f}"
                print(f"{method:8}{precision:6}{row.who:14}{speed}{row.parameters / 1e6:8.2f}M", flush=True)
                rows.append(row)
    if options.json:
        record = {key: value for key, value in vars(options).items() if key != "json"}
        record |= {"versions": versions, "cores": os.cpu_count()}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"setting": record, "rows": [asdict(row) for row in rows]}, indent=2) + "\n")
    return 0


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-size", type=int, default=96, help="pixels [96]")
    parser.add_argument("--patch-size", type=int, default=8, help="pixels; Swin's are of 4 [8]")
    parser.add_argument("--width", type=int, default=192, help="of the ViT; Swin begins with a quarter [192]")
    parser.add_argument("--depth", type=int, default=6, help="blocks [6]")
    parser.add_argument("--heads", type=int, default=4, help="attention heads [4]")
    parser.add_argument("--masked", type=int, default=56, help="BEiT: most masked patches [56]")
    parser.add_argument("--batch", type=int, default=8, help="images [8]")
    parser.add_argument("--precisions", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    parser.add_argument("--only", nargs="+", choices=list(METHODS), help="[all]")
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds [7]")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch [1]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the metrics there too")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
