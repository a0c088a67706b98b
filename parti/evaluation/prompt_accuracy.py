"""Prompt accuracy on `shapes`: images checked against their captions, and against those of other images.

The second metric is the baseline of the first: the score of a generator that draws clean scenes but ignores its prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vqgan.data.sources.shapes import Scene, parse_caption
from vqgan.metrics.shapes_checker import Verdict, check


@dataclass(frozen=True)
class CheckedImage:
    """An image, its caption, and whether the image shows it."""

    image: Image.Image
    caption: str
    verdict: Verdict


@dataclass(frozen=True)
class PromptEvaluation:
    """One checked image for each prompt, and the verdicts with the prompt of another image."""

    checked: list[CheckedImage]
    random_pairing: list[Verdict]

    @property
    def accuracy(self) -> float:
        """Fraction of images that show their prompt: both objects' color, shape and size, and the relation."""
        return _share_correct([image.verdict for image in self.checked])

    @property
    def random_pairing_accuracy(self) -> float:
        """Fraction of images that pass for another prompt."""
        return _share_correct(self.random_pairing)


def evaluate_prompts(images: Sequence[Image.Image], prompts: Sequence[str], seed: int = 0) -> PromptEvaluation:
    """Checks each image against its prompt and against a random other prompt, chosen by `seed`.

    Raises ValueError unless there is one `shapes` caption for each image, and two of them differ in meaning.
    """
    pairs = zip(images, other_captions(prompts, seed), strict=True)
    return PromptEvaluation(check_images(images, prompts), [check(image, other) for image, other in pairs])


def check_images(images: Sequence[Image.Image], captions: Sequence[str]) -> list[CheckedImage]:
    """Returns each image with the verdict on its caption."""
    pairs = zip(images, captions, strict=True)
    return [CheckedImage(image, caption, check(image, caption)) for image, caption in pairs]


def other_captions(captions: Sequence[str], seed: int = 0) -> list[str]:
    """Returns for each caption a random one of the others that describes another scene.

    "A above B" and "B below A" are the same scene. Raises ValueError if all captions describe the same.
    """
    rng = np.random.default_rng(seed)
    meanings = [_meaning(caption) for caption in captions]
    if len(set(meanings)) < 2:
        raise ValueError(f"random pairing needs captions of two meanings, received {len(captions)} captions of one")
    others = []
    for own in meanings:
        number = int(rng.integers(len(meanings)))
        while meanings[number] == own:
            number = int(rng.integers(len(meanings)))
        others.append(captions[number])
    return others


def _meaning(caption: str) -> Scene:
    """Returns the scene in canonical order: from top to bottom, or from left to right."""
    first, relation, second = parse_caption(caption)
    opposite = {"below": "above", "right of": "left of"}.get(relation)
    return Scene(second, opposite, first) if opposite else Scene(first, relation, second)


def _share_correct(verdicts: Sequence[Verdict]) -> float:
    return sum(verdict.correct for verdict in verdicts) / len(verdicts)
