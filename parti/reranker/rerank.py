"""Reranking: generates several candidates for each image and keeps the one with the best score.

DALL-E showed the best of 512 by CLIP, Parti the best of 16 by CoCa (arXiv 2102.12092, section 2.6; 2206.10789,
section 2.3). The quality depends on the number of candidates: report it with the images.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from parti.base_pipeline import GeneratedImage, Pipeline, Requests, SampleOptions
from parti.reranker.scorer import Scorer


@dataclass(frozen=True)
class Kept:
    """The best candidate for an image, with its score."""

    generated: GeneratedImage
    score: float


def best_of(scores: Float[Tensor, "N"], candidates: int) -> Int64[Tensor, "G"]:
    """Returns the index of the highest of every `candidates` consecutive scores; ties go to the first.

    Raises ValueError if the scores do not divide into such groups.
    """
    if candidates < 1 or len(scores) % candidates:
        raise ValueError(f"{len(scores)} scores do not divide into groups of {candidates}; score every candidate")
    # argmax may return any of several equal ones.
    first = torch.stack([group.eq(group.max()).int().argmax() for group in scores.split(candidates)])
    return first + torch.arange(len(first), device=scores.device) * candidates


def candidate_seeds(wanted: Sequence[tuple[str, int]], candidates: int) -> list[tuple[str, int]]:
    """Returns (prompt, seed) of every candidate: those of an image have its seed and the following ones."""
    return [(prompt, seed + number) for prompt, seed in wanted for number in range(candidates)]


def sample_best(
    model: Pipeline,
    scorer: Scorer,
    requests: Requests,
    candidates: int,
    options: SampleOptions = SampleOptions(),  # noqa: B008 - frozen
    *,
    batch_size: int = 64,
    progress: bool = False,
) -> Iterator[Kept]:
    """Yields the best of `candidates` images for each (prompt, seed) pair, in their order; see `candidate_seeds`.

    `options` are those of `Pipeline.stream`; their `on_rows` gets candidates. Images of one prompt whose seeds are less
    than `candidates` apart share candidates. Raises what `stream` raises.
    """
    asked = candidate_seeds(requests, candidates)
    generated = model.stream(asked, options, batch_size=batch_size, progress=progress)
    return keep_best(generated, scorer, candidates)


def keep_best(generated: Iterable[GeneratedImage], scorer: Scorer, candidates: int) -> Iterator[Kept]:
    """Yields the best of every `candidates` consecutive images, which have the same prompt."""
    group: list[GeneratedImage] = []
    for one in generated:
        group.append(one)
        if len(group) == candidates:
            scores = scorer.score_images([each.image for each in group], [each.prompt for each in group])
            best = int(best_of(scores, candidates))
            yield Kept(group[best], scores[best].item())
            group = []
