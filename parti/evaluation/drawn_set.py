"""Pictures drawn for held-out captions: are they right, do they look like real ones, do they fit their captions.

Nothing is kept but what the figures need: thirty thousand pictures do not lie in memory.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from parti.evaluation.drawing import drawn_in_parts
from parti.evaluation.judging import other_captions
from parti.evaluation.subject import Draw
from vqgan.metrics.inception import DrawnInceptionMeter
from vqgan.metrics.judge import Judge
from vqgan.metrics.protocol import Figure
from vqgan.metrics.reference_set import captions_sha256


@runtime_checkable
class DrawnMeter(Protocol):
    """Measures drawn pictures, part by part."""

    def add(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> None:
        """Take pictures, each with the prompt that it was drawn for, into account."""
        ...

    def figures(self) -> Iterable[Figure]:
        """The figures of all pictures so far."""
        ...


class PromptAccuracyMeter:
    """Share of pictures that a judge finds right, and the share that passes for another prompt of the list.

    Parts come in the order of `prompts`.
    """

    def __init__(self, judge: Judge, prompts: Sequence[str], seed: int = 0) -> None:
        self._judge = judge
        self._seed = seed
        self._right: list[bool] = []
        self._right_for_others: list[bool] = []
        self._no_pairing = ""
        try:
            self._others: Iterator[str] = iter(other_captions(prompts, seed))
        except ValueError as error:
            self._others, self._no_pairing = iter(()), str(error)

    def add(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> None:
        """Judge each picture twice."""
        self._right += map(self._judge, pictures, prompts)
        others = list(islice(self._others, len(pictures)))
        self._right_for_others += map(self._judge, pictures, others)

    def figures(self) -> Iterator[Figure]:
        """Both figures of all pictures so far."""
        method = "share of pictures that show their prompt in every respect, by a checker of pixels"
        accuracy = sum(self._right) / len(self._right)
        error = (accuracy * (1 - accuracy) / len(self._right)) ** 0.5
        details = {"judge": "vqgan.metrics.shapes_checker", "pictures": len(self._right), "standard_error": error}
        yield Figure("prompt_accuracy", accuracy, "", method, details)
        name, method = (
            "random_pairing_accuracy",
            "the same pictures judged by another prompt, one that asks for something else",
        )
        details = {"judge": "vqgan.metrics.shapes_checker", "pairing_seed": self._seed}
        if self._no_pairing:
            yield Figure(name, None, "", method, details, missing=self._no_pairing)
        else:
            value = sum(self._right_for_others) / len(self._right_for_others)
            yield Figure(name, value, "", method, details | {"pictures": len(self._right_for_others)})


class RealismMeter:
    """FID against the real pictures that `inception` has seen, and the inception score."""

    def __init__(self, inception: DrawnInceptionMeter, device: torch.device) -> None:
        self._inception = inception
        self._device = device

    def add(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> None:  # noqa: ARG002
        """Take pictures into account; what they were drawn for does not matter."""
        self._inception.add_drawn(levels(pictures).to(self._device))

    def figures(self) -> Iterable[Figure]:
        """Both figures of all pictures so far."""
        return self._inception.figures()


def wanted_pictures(captions: Sequence[str], count: int, seed: int) -> list[tuple[str, int]]:
    """(prompt, seed) of `count` pictures: the captions in their order, again from the first where they do not suffice
    (LN-COCO's 5,000 give 30,000 pictures so); picture i has seed `seed` + i."""
    return [(captions[number % len(captions)], seed + number) for number in range(count)]


def draw_and_measure(
    draw: Draw,
    wanted: Sequence[tuple[str, int]],
    meters: Sequence[DrawnMeter],
    batch_size: int,
    progress: bool = False,
) -> Iterator[Figure]:
    """Draw every wanted picture once, and what the meters find."""
    for part in drawn_in_parts(draw, wanted, batch_size, progress):
        pictures, prompts = [one.image for one in part], [one.prompt for one in part]
        for meter in meters:
            meter.add(pictures, prompts)
    for meter in meters:
        yield from meter.figures()


def drawn_protocol(wanted: Sequence[tuple[str, int]], sampling: Mapping[str, Any], distinct: int) -> dict[str, Any]:
    """How the pictures of a set were drawn; `distinct` captions were there to draw."""
    return {
        "drawn": {
            "pictures": len(wanted),
            "captions": distinct,
            "prompts_sha256": captions_sha256([prompt for prompt, _ in wanted]),
            "hashed": "prompt after prompt, UTF-8, each with a line feed",
            "first_seed": wanted[0][1],
            "seeds": "counting up, one a picture",
            "sampling": dict(sampling),
            "picked": "none: one picture a prompt, no reranking",
            "rounding": "to uint8, as a PNG holds it",
        }
    }


def levels(pictures: Sequence[Image.Image]) -> UInt8[Tensor, "B 3 H W"]:
    """Pictures as they are in a PNG file."""
    return torch.stack([torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1) for picture in pictures])
