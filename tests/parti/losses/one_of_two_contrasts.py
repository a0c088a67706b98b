"""What test_contrastive.py starts twice. Argument: a folder."""

import os
import sys
from pathlib import Path

import torch

from parti.losses.contrastive import contrastive_loss
from vqgan.training.parallel.distributed import build_accelerator


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    given = torch.load(folder / "given.pt", weights_only=True)
    own = slice(3 * rank, 3 * rank + 3)
    images, texts = given["images"][own].requires_grad_(), given["texts"][own].requires_grad_()
    scale = torch.tensor(4.0, requires_grad=True)
    contrast = contrastive_loss(images, texts, given["text_ids"][own], scale, build_accelerator())
    contrast.loss.backward()
    gradients = [weight.grad for weight in (images, texts, scale)]
    found = {"loss": contrast.loss.detach(), "accuracy": contrast.accuracy, "gradients": gradients}
    torch.save(found, folder / f"found-{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
