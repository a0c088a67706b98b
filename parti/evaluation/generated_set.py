"""Metrics of images generated for validation captions: correctness, realism, fit to the caption.

Images are not stored, only what the metrics need, so that sets of 30,000 images fit in memory.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from parti.evaluation.prompt_accuracy import other_captions
from parti.evaluation.sample_in_parts import Generate, sample_in_parts
from vqgan.metrics.caption_checkers import CaptionChecker
from vqgan.metrics.inception import GeneratedInceptionMeter
from vqgan.metrics.protocol import Metric
from vqgan.metrics.reference_set import captions_sha256


@runtime_checkable
class SampleMetric(Protocol):
    """Measures generated images, part by part."""

    def add(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> None:
        """Adds images, each with its prompt, to the metrics."""
        ...

    def metrics(self) -> Iterable[Metric]:
        """Returns the metrics of all images so far."""
        ...


class PromptAccuracyMeter:
    """Fraction of images that a checker finds correct, and the fraction that also passes for another prompt of the
    list.

    Parts must come in the order of `prompts`.
    """

    def __init__(self, check_image: CaptionChecker, prompts: Sequence[str], seed: int = 0) -> None:
        self._check_image = check_image
        self._seed = seed
        self._correct: list[bool] = []
        self._correct_for_others: list[bool] = []
        self._no_pairing = ""
        try:
            self._others: Iterator[str] = iter(other_captions(prompts, seed))
        except ValueError as error:
            self._others, self._no_pairing = iter(()), str(error)

    def add(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> None:
        """Checks each image against its own prompt and against another one."""
        self._correct += map(self._check_image, images, prompts)
        others = list(islice(self._others, len(images)))
        self._correct_for_others += map(self._check_image, images, others)

    def metrics(self) -> Iterator[Metric]:
        """Yields both metrics of all images so far."""
        method = "share of images that show their prompt in every respect, by a checker of pixels"
        accuracy = sum(self._correct) / len(self._correct)
        error = (accuracy * (1 - accuracy) / len(self._correct)) ** 0.5
        details = {"check_image": "vqgan.metrics.shapes_checker", "images": len(self._correct), "standard_error": error}
        yield Metric("prompt_accuracy", accuracy, "", method, details)
        name, method = (
            "random_pairing_accuracy",
            "the same images judged by another prompt, one that asks for something else",
        )
        details = {"check_image": "vqgan.metrics.shapes_checker", "pairing_seed": self._seed}
        if self._no_pairing:
            yield Metric(name, None, "", method, details, missing=self._no_pairing)
        else:
            value = sum(self._correct_for_others) / len(self._correct_for_others)
            yield Metric(name, value, "", method, details | {"images": len(self._correct_for_others)})


class FIDMeter:
    """FID against the real images added to `inception`, and the inception score."""

    def __init__(self, inception: GeneratedInceptionMeter, device: torch.device) -> None:
        self._inception = inception
        self._device = device

    def add(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> None:  # noqa: ARG002
        """Adds images to the metrics; their prompts are not used."""
        self._inception.add_generated(levels(images).to(self._device))

    def metrics(self) -> Iterable[Metric]:
        """Returns both metrics of all images so far."""
        return self._inception.metrics()


def wanted_images(captions: Sequence[str], count: int, seed: int) -> list[tuple[str, int]]:
    """Returns (prompt, seed) of `count` images: the captions in order, repeated if there are fewer of them (30,000
    images for the 5,000 captions of LN-COCO); image i has the seed `seed` + i."""
    return [(captions[number % len(captions)], seed + number) for number in range(count)]


def sample_and_measure(
    generate: Generate,
    wanted: Sequence[tuple[str, int]],
    meters: Sequence[SampleMetric],
    batch_size: int,
    progress: bool = False,
) -> Iterator[Metric]:
    """Generates every requested image once, and returns the metrics."""
    for part in sample_in_parts(generate, wanted, batch_size, progress):
        images, prompts = [one.image for one in part], [one.prompt for one in part]
        for meter in meters:
            meter.add(images, prompts)
    for meter in meters:
        yield from meter.metrics()


def sampling_protocol(wanted: Sequence[tuple[str, int]], sampling: Mapping[str, Any], distinct: int) -> dict[str, Any]:
    """Returns the protocol of a set of images; `distinct` is the number of captions available."""
    return {
        "generated": {
            "images": len(wanted),
            "captions": distinct,
            "prompts_sha256": captions_sha256([prompt for prompt, _ in wanted]),
            "hashed": "prompt after prompt, UTF-8, each with a line feed",
            "first_seed": wanted[0][1],
            "seeds": "counting up, one an image",
            "sampling": dict(sampling),
            "picked": "none: one image a prompt, no reranking",
            "rounding": "to uint8, as a PNG holds it",
        }
    }


def levels(images: Sequence[Image.Image]) -> UInt8[Tensor, "B 3 H W"]:
    """Returns images rounded to 8 bits, as in a PNG file."""
    return torch.stack([torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1) for image in images])
