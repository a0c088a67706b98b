"""CLIP's objective (Radford et al., arXiv 2103.00020, figure 3) over the pairs of all processes.

Every image is classified among all captions, every caption among all images. Departure: a caption shared by several
images of the batch is not a negative of those images, nor they of it; otherwise data sets with few captions would
penalize correct matches.

Legend: b pairs of this process, B pairs of all processes, D embedding, T text positions.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from vqgan.training.parallel.distributed import all_gather_rows


class Contrast(NamedTuple):
    """The loss over this process's pairs, and the accuracies of images and captions."""

    loss: Float[Tensor, ""]
    accuracy: Float[Tensor, ""]


def contrastive_loss(
    images: Float[Tensor, "b D"],
    texts: Float[Tensor, "b D"],
    text_ids: Int64[Tensor, "b T"],
    scale: Float[Tensor, ""],
    accelerator: Accelerator,
) -> Contrast:
    """Returns the symmetric cross-entropy of fp32 unit vectors; `scale` multiplies their cosines.

    Averaged over the processes, loss and gradients equal those of one process with all pairs. All processes must call
    it with the same number of pairs.
    """
    all_images, all_texts = gather_with_gradient(images, accelerator), gather_with_gradient(texts, accelerator)
    local = len(images)
    own = torch.arange(local, device=images.device) + accelerator.process_index * local
    twins = _twins(text_ids, all_gather_rows(accelerator, text_ids), own)
    losses, hits = [], []
    for mine, others in ((images, all_texts), (texts, all_images)):
        logits = (scale * mine @ others.T).masked_fill(twins, float("-inf"))
        losses.append(F.cross_entropy(logits, own))
        hits.append((logits.argmax(-1) == own).float().mean())
    return Contrast(torch.stack(losses).mean(), torch.stack(hits).mean())


def retrieval_accuracy(
    images: Float[Tensor, "B D"], texts: Float[Tensor, "B D"], text_ids: Int64[Tensor, "B T"]
) -> tuple[float, float]:
    """Returns the retrieval accuracies: how often the nearest caption of an image, and image of a caption, matches."""
    similarity = images @ texts.T
    right = [(text_ids[similarity.argmax(dim)] == text_ids).all(-1).float().mean().item() for dim in (1, 0)]
    return right[0], right[1]


def gather_with_gradient(rows: Float[Tensor, "b D"], accelerator: Accelerator) -> Float[Tensor, "B D"]:
    """Gathers the rows of all processes in rank order; backward sums the gradients of all processes for this one's
    rows."""
    if accelerator.num_processes == 1:
        return rows
    return _GatherRows.apply(rows, accelerator)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, accelerator: Accelerator) -> Tensor:
        ctx.accelerator, ctx.local = accelerator, len(rows)
        return all_gather_rows(accelerator, rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = ctx.accelerator.reduce(gradients[0].contiguous(), reduction="sum")
        start = ctx.accelerator.process_index * ctx.local
        return total[start : start + ctx.local], None


def _twins(
    text_ids: Int64[Tensor, "b T"], all_text_ids: Int64[Tensor, "B T"], own: Int64[Tensor, "b"]
) -> Bool[Tensor, "b B"]:
    """Returns the mask of pairs of the whole batch that share a caption."""
    same = (text_ids[:, None] == all_text_ids[None]).all(-1)
    return same.scatter(1, own[:, None], False)
