"""Fine-tuning of an encoder on few labels: where masked image modeling gains most, in all of its papers.

As MAE and BEiT fine-tune: mean of the patches, a norm, a linear head, AdamW with a warm-up and a cosine, and lower
rates for lower layers (layer decay). No augmentation: flips and crops change what a shapes image shows.

Legend: n images, D width.
"""

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from parti.mim.network import MaskedImageNetwork

EPOCHS = 20
BATCH = 25
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.05
LAYER_DECAY = 0.65
_WARMUP = 0.1
"""Share of the steps."""


class Classifier(nn.Module):
    """A copy of a network's encoder with a linear head for each label."""

    def __init__(self, network: MaskedImageNetwork, classes: dict[str, int], width: int) -> None:
        super().__init__()
        self.network = copy.deepcopy(network)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.heads = nn.ModuleDict({name: nn.Linear(width, count) for name, count in classes.items()})
        for head in self.heads.values():
            assert isinstance(head, nn.Linear)
            nn.init.trunc_normal_(head.weight, std=0.02)
            nn.init.zeros_(head.bias)

    def forward(self, images: Float[Tensor, "n 3 H W"]) -> dict[str, Tensor]:
        """The logits (n, classes) of each label."""
        features = self.norm(self.network.layer_states(images)[-1].mean(1))
        return {name: head(features) for name, head in self.heads.items()}


def fine_tune(
    network: MaskedImageNetwork,
    images: Float[Tensor, "n 3 H W"],
    labels: dict[str, Int64[Tensor, "n"]],
    classes: dict[str, int],
    *,
    seed: int,
    layer_decay: float = LAYER_DECAY,
    epochs: int = EPOCHS,
) -> Classifier:
    """Trains all weights on these images. The order of the images is that of `seed`; 1 as `layer_decay` is for a
    network that learns from scratch."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        width = network.layer_states(images[:1])[-1].shape[-1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier = Classifier(network, classes, width).to(images.device).train()
        groups = _groups(classifier, layer_decay)
        optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999))
        steps, step = epochs * math.ceil(len(images) / BATCH), 0
        for _ in range(epochs):
            for rows in torch.randperm(len(images), generator=generator).split(BATCH):
                for group in optimizer.param_groups:
                    group["lr"] = group["rate"] * _schedule(step, steps)
                logits = classifier(images[rows])
                loss = torch.stack([F.cross_entropy(logits[name], labels[name][rows]) for name in labels]).sum()
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(classifier.parameters(), 1.0)
                optimizer.step()
                step += 1
    return classifier.eval()


@torch.no_grad()
def right(
    classifier: Classifier, images: Float[Tensor, "n 3 H W"], labels: dict[str, Int64[Tensor, "n"]]
) -> dict[str, Int64[Tensor, ""]]:
    """How many of the images are right, by label."""
    logits = classifier(images)
    return {name: (logits[name].argmax(1) == labels[name]).sum() for name in labels}


def _schedule(step: int, steps: int) -> float:
    warmup = max(1.0, _WARMUP * steps)
    return min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * step / steps)))


def _groups(classifier: Classifier, layer_decay: float) -> list[dict[str, Any]]:
    """Parameters with the rate of their depth: layer k of L has LEARNING_RATE * layer_decay ** (L + 1 - k), the
    embeddings being layer 0 and the head layer L + 1. Vectors have no weight decay."""
    blocks = [*classifier.network.encoder_blocks()]
    depth = {id(weight): number for number, block in enumerate(blocks, 1) for weight in block.parameters()}
    top = [*classifier.norm.parameters(), *classifier.heads.parameters(), *classifier.network.encoder.norm.parameters()]
    depth |= {id(weight): len(blocks) + 1 for weight in top}
    trained = [*classifier.network.encoder.parameters(), *classifier.norm.parameters(), *classifier.heads.parameters()]
    return [
        {
            "params": [weight],
            "rate": LEARNING_RATE * layer_decay ** (len(blocks) + 1 - depth.get(id(weight), 0)),
            "weight_decay": WEIGHT_DECAY if weight.ndim > 1 else 0.0,
        }
        for weight in trained
        if weight.requires_grad
    ]
