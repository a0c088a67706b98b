"""Encodes the captions of a training batch as ids, with the noise that their drafts are sampled with."""

from typing import NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor

from parti.fused.captioning.captioner import DraftNoise
from parti.fused.captioning.tokens import CaptionTokens
from vqgan.data.batch import Batch


class ReadCaptions(NamedTuple):
    """Ids (B, T), and the fraction of the captions that were truncated at the model's length."""

    ids: Int64[Tensor, "B T"]
    noise: DraftNoise
    truncated_fraction: float


def read_captions(
    tokens: CaptionTokens, batch: Batch, seed: int, step: int, batch_size: int, start: int
) -> ReadCaptions:
    """Encodes a batch that begins at row `start` of the `batch_size` rows of a step.

    The noise is a function of (seed, step, row), so it does not depend on how the rows are split between processes.
    """
    device = batch.images.device
    ids, cut = tokens.encode(batch.texts())
    length = ids.shape[1]
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    generated = torch.rand(batch_size, 2 * length + 1, generator=generator)[start : start + len(batch)].to(device)
    noise = DraftNoise(generated[:, :length], generated[:, length], generated[:, length + 1 :])
    return ReadCaptions(ids.to(device), noise, sum(cut) / len(cut))
