"""Validation PSNR and SSIM of image tokenizers after equal training time: ours and `parti-pytorch`'s VitVQGanVAE.

    python benchmarks/quality_at_equal_time.py --minutes 10 --out out/quality

Same data (OpenMoji at 64x64, the same 1,827 training and 91 validation drawings), the same number of codes an image
(64) and codes to choose from (2,048), the same cores, one contender after the other, each in a process of its own. The
clock runs while a contender trains, its data included; evaluation does not count. Ours is configs/vqgan/openmoji.yaml
with all four losses; its length in steps is set from the rate of its first steps, which count. The peer trains as its
own trainer does (Adam 3e-4, hinge, its gradient penalty at every step, since without it the package raises), with its
VGG untrained as our LPIPS is; `reconstruction` is the same network without VGG and discriminator, its fastest road to a
good PSNR. Of a peer the best of all evaluations counts, of ours the last. Needs the extra `benchmarks`.
"""

import argparse
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vqgan.config.schema import load_config
from vqgan.data.batch import Batch
from vqgan.data.loader import BatchShard, DataPipeline
from vqgan.image_tokenizer import ImageTokenizer
from vqgan.metrics.fidelity import psnr, ssim
from vqgan.system.host_memory import keep_freed_memory
from vqgan.train_tokenizer import TrainVQGANConfig, build_task
from vqgan.training.parallel.distributed import build_accelerator
from vqgan.training.parallel.seeding import seed_everything

CONFIG = Path(__file__).parents[1] / "configs/vqgan/openmoji.yaml"
BASELINES = ("ours", "parti-pytorch", "parti-pytorch-reconstruction")
CALIBRATION_STEPS = 30
MANY_STEPS = 1_000_000

Step = Callable[[Batch, int], object]
Reconstruct = Callable[[Tensor], Tensor]


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="training time of each contender")
    parser.add_argument("--evaluations", type=int, default=10, help="points of each curve")
    parser.add_argument("--baselines", nargs="+", choices=BASELINES, default=list(BASELINES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out/quality"), help="folder for one JSON file a contender")
    parser.add_argument("--only", choices=BASELINES, help=argparse.SUPPRESS)  # the process of one contender
    arguments = parser.parse_args(argv)
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.only:
        curve = list(train(arguments.only, arguments.minutes * 60, arguments.evaluations, arguments.seed))
        (arguments.out / f"{arguments.only}.json").write_text(json.dumps(curve, indent=1) + "\n")
        return 0
    for name in arguments.baselines:
        subprocess.run([sys.executable, __file__, *argv, "--only", name], check=True)
    print(f"\n{'baseline':32}{'steps':>8}{'PSNR dB':>10}{'SSIM':>8}")
    for name in arguments.baselines:
        curve = json.loads((arguments.out / f"{name}.json").read_text())
        best = curve[-1] if name == "ours" else max(curve, key=lambda point: point["psnr"])
        print(f"{name:32}{best['step']:8}{best['psnr']:10.2f}{best['ssim']:8.3f}")
    return 0


def train(name: str, seconds: float, evaluations: int, seed: int) -> Iterator[dict[str, float]]:
    """Points of the learning curve: seconds of training, steps, validation PSNR and SSIM."""
    keep_freed_memory()
    config = load_config(TrainVQGANConfig, CONFIG)
    data = DataPipeline(config.data, seed)
    val = list(data.val_batches())
    seed_everything(seed, 0)
    spent, due = 0.0, 1
    if name == "ours":
        # The schedules need the run's length: from the rate of some steps, which are part of the time.
        spent = seconds_of(CALIBRATION_STEPS, ours(config, seed, MANY_STEPS)[0], data)
        steps = int(seconds * 0.97 / (spent / CALIBRATION_STEPS))
        seed_everything(seed, 0)
        step, reconstruct = ours(config, seed, steps)
    else:
        steps = MANY_STEPS
        step, reconstruct = parti_pytorch(config, all_losses=name == "parti-pytorch")
    start = time.perf_counter() - spent  # evaluation moves it on
    for taken, (batch,) in enumerate(data.training_batches(0, steps, BatchShard()), start=1):
        step(batch, taken - 1)
        spent = time.perf_counter() - start
        over = spent >= seconds or taken == steps
        if over or spent >= due * seconds / evaluations:
            due += 1
            point = {"seconds": spent, "step": taken} | quality(reconstruct, val)
            print(name, "  ".join(f"{key} {value:.4g}" for key, value in point.items()), flush=True)
            yield point
            start = time.perf_counter() - spent
        if over:
            return


def seconds_of(steps: int, step: Step, data: DataPipeline) -> float:
    """The time of the first `steps` steps, the data's included."""
    start = time.perf_counter()
    for number, (batch,) in enumerate(data.training_batches(0, steps, BatchShard())):
        step(batch, number)
    return time.perf_counter() - start


@torch.no_grad()
def quality(reconstruct: Reconstruct, batches: list[Batch]) -> dict[str, float]:
    """Mean PSNR in dB and SSIM, images rounded to 256 levels."""
    pairs = [(reconstruct(batch.images), batch.images) for batch in batches]
    return {
        "psnr": torch.cat([psnr(*pair) for pair in pairs]).mean().item(),
        "ssim": torch.cat([ssim(*pair) for pair in pairs]).mean().item(),
    }


def ours(config: TrainVQGANConfig, seed: int, steps: int) -> tuple[Step, Reconstruct]:
    """The shipped recipe, `steps` long."""
    loop = config.loop.model_copy(update={"steps": steps})
    task = build_task(config.model_copy(update={"loop": loop, "seed": seed}), build_accelerator())

    def reconstruct(images: Tensor) -> Tensor:
        tokenizer = ImageTokenizer(task.ema.module)
        return tokenizer.decode(tokenizer.encode(images))

    return lambda batch, step: task.train_step([batch], step), reconstruct


def parti_pytorch(config: TrainVQGANConfig, *, all_losses: bool) -> tuple[Step, Reconstruct]:
    """VitVQGanVAE of a similar size, with its published training step."""
    warnings.filterwarnings("ignore")
    import torchvision
    from parti_pytorch.optimizer import get_optimizer
    from parti_pytorch.vit_vqgan import VitVQGanVAE

    vgg = None
    if all_losses:
        vgg = torchvision.models.vgg16(weights=None)
        vgg.classifier = nn.Sequential(*vgg.classifier[:-2])
        vgg.requires_grad_(False)
    width, quantizer = config.model.encoder.width, config.model.quantizer
    vae = VitVQGanVAE(
        dim=width,
        image_size=config.model.image_size,
        layers=4,
        encdec_patch_size=config.model.patch_size,
        codebook_size=quantizer.codebook_size,
        use_vgg_and_gan=all_losses,
        vgg=vgg,
    )
    discriminator = list(vae.discr.parameters()) if all_losses else []
    optimizer = get_optimizer([*vae.enc_dec.parameters(), *vae.quantizer.parameters()], lr=3e-4, wd=0.0)
    discriminator_optimizer = get_optimizer(discriminator, lr=3e-4, wd=0.0) if all_losses else None

    def step(batch: Batch, _: int) -> None:
        images = (batch.images + 1) / 2
        vae.train()
        vae(images, return_loss=True).backward()
        optimizer.step()
        optimizer.zero_grad()
        if discriminator_optimizer is not None:
            discriminator_optimizer.zero_grad()
            vae(images, return_discr_loss=True).backward()
            discriminator_optimizer.step()

    def reconstruct(images: Tensor) -> Tensor:
        vae.eval()
        image_list: Any = vae((images + 1) / 2)
        return image_list.clamp(0, 1) * 2 - 1

    return step, reconstruct


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
