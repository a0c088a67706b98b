"""How much of a codebook is in use, from the codes of a batch or from how often each code was hit.

Nothing here waits for the device: every metric is a tensor where its input lies. `V` codes in the book, each `D` wide;
`B` images of `N` codes.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from vqgan.metrics.protocol import Metric, Reconstructions

SHARE_IMAGES = 256
"""Images over which definition (a) of the usage counts (ViT-VQGAN, arXiv 2110.04627, table 4)."""


def hits_share(codes: Int64[Tensor, "B N"], vocab_size: int) -> Float[Tensor, ""]:
    """Returns the share of the codes that one batch hits, in [0, 1]; the mean over batches of 256 images is definition
    (a).

    The share grows with the batch: only shares of equally many images compare (papers.md H).
    """
    hit = torch.zeros(vocab_size, device=codes.device)
    hit[codes.flatten()] = 1.0
    return hit.mean()


def usage(counts: Int64[Tensor, "V"]) -> Float[Tensor, ""]:
    """Returns the share of the codes that were hit at least once over the whole set (papers.md H, definition b), in [0,
    1]."""
    return (counts > 0).float().mean()


def dead_codes(counts: Int64[Tensor, "V"]) -> Int64[Tensor, ""]:
    """Returns how many codes were never hit."""
    return (counts == 0).sum()


def entropy(counts: Int64[Tensor, "V"]) -> Float[Tensor, ""]:
    """Returns the entropy of the code distribution in nats, at most ln V; 0 where nothing was counted."""
    share = counts.double() / counts.sum().clamp(min=1)
    return -(share * share.clamp(min=1e-300).log()).sum().float()


def perplexity(counts: Int64[Tensor, "V"]) -> Float[Tensor, ""]:
    """exp of the entropy of the code distribution: the number of equally likely codes with that entropy."""
    return entropy(counts).exp()


def norm_spread(codebook: Float[Tensor, "V D"]) -> Float[Tensor, ""]:
    """Returns the standard deviation of the codes' norms over their mean: 0 for codes on a sphere."""
    norms = codebook.float().norm(dim=1)
    return norms.std(correction=0) / norms.mean()


class CodebookMeter:
    """Usage in both of its definitions, perplexity, entropy and dead codes of a set."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._counts = torch.zeros(vocab_size, dtype=torch.int64)
        self._shares: list[Tensor] = []
        self._waiting: list[Tensor] = []  # codes of fewer than SHARE_IMAGES images

    def add(self, batch: Reconstructions) -> None:
        """Count every code; shares are taken of each 256 images in turn, however large the batches are."""
        codes = batch.codes.cpu()
        self._counts += torch.bincount(codes.flatten(), minlength=self._vocab_size)
        chunks = list(torch.cat([*self._waiting, codes]).split(SHARE_IMAGES))
        self._waiting = [chunks.pop()] if len(chunks[-1]) < SHARE_IMAGES else []
        self._shares += [hits_share(chunk, self._vocab_size) for chunk in chunks]

    def metrics(self) -> Iterator[Metric]:
        size = {"evaluator": "vqgan.metrics.codebook", "codebook_size": self._vocab_size}
        waiting = sum(map(len, self._waiting))
        by_256 = f"definition (a): mean share of the {self._vocab_size} codes that {SHARE_IMAGES} images hit"
        if self._shares:
            left_out = {"groups": len(self._shares), "images_left_out": waiting}
            share = torch.stack(self._shares).mean().item()
            yield Metric("codebook_usage_256", share, "", by_256, size | left_out)
        else:
            missing = f"needs {SHARE_IMAGES} images at least, received {waiting}: raise limit or give more images"
            yield Metric("codebook_usage_256", None, "", by_256, size, missing=missing)
        over_set = f"definition (b): share of the {self._vocab_size} codes hit at least once over the whole set"
        yield Metric("codebook_usage", usage(self._counts).item(), "", over_set, size)
        of_codes = "of the distribution of codes over the whole set"
        yield Metric("codebook_perplexity", perplexity(self._counts).item(), "", f"exp of the entropy {of_codes}", size)
        yield Metric("codebook_entropy", entropy(self._counts).item(), "nats", f"entropy {of_codes}", size)
        yield Metric("dead_codes", int(dead_codes(self._counts)), "", "codes never hit over the whole set", size)
