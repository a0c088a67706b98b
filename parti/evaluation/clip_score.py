"""CLIP score of images and prompts, by a named backbone (Hessel et al., arXiv 2104.08718).

The scale is that of torchmetrics: the mean of 100 cos, clamped to 0 from below; the paper's is 2.5 max(cos, 0). Scores
of two backbones are not comparable, so each has its own metric. A backbone that selected the images must not score
them: nothing is reranked here.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from parti.reranker.scorer import Scorer
from vqgan.hub.model_folder import ModelFolderError
from vqgan.metrics.protocol import Metric, package

METHOD = "max(mean of 100 cos(image, prompt), 0)"


@dataclass(frozen=True)
class Backbone:
    """A contrastive model by its name; if it is not available, `scorer` is None and `missing` says what to fetch."""

    name: str
    scorer: Scorer | None
    missing: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Its entry of a protocol."""

    def scores(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[float]:
        """Returns 100 cos of each image and its prompt. Raises ValueError if the backbone is missing."""
        if self.scorer is None:
            raise ValueError(f"{self.name} cannot score: {self.missing}")
        return (100 * self.scorer.score_images(images, prompts)).tolist()

    def metric(self, scores: Sequence[float], prefix: str = "", details: Mapping[str, Any] | None = None) -> Metric:
        """Returns the CLIP score over `scores`; null if the backbone is missing."""
        name = f"{prefix}clip_score({self.name})"
        details = {**self.details, **(details or {})}
        if self.scorer is None:
            return Metric(name, None, "", METHOD, details, missing=self.missing)
        value = max(sum(scores) / len(scores), 0.0)
        count = f"{len(scores)} image{'s' if len(scores) > 1 else ''}"
        return Metric(name, value, "", f"{METHOD}; {count}", details | {"images": len(scores)})


class ClipScoreMeter:
    """The CLIP score of a set that is added in parts."""

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
        self._scores: list[float] = []

    def add(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> None:
        """Adds images to the metric."""
        if self._backbone.scorer is not None:
            self._scores += self._backbone.scores(images, prompts)

    def metrics(self) -> list[Metric]:
        """Returns the CLIP score of all images so far."""
        return [self._backbone.metric(self._scores)]


def open_backbone(name: str, device: torch.device) -> Backbone:
    """Opens a CLIP or SigLIP folder or Hub name. A model that is not available gives a backbone with `missing` set.

    Raises ModelFolderError for an existing folder without such a model.
    """
    details: dict[str, Any] = {"backbone": name, "evaluator": package("transformers"), "scale": "max(100 cos, 0)"}
    try:
        scorer = Scorer.from_pretrained(name).to(device)
    except ModelFolderError as error:
        if Path(name).expanduser().exists():
            raise
        remedy = f"fetch it where there is a network (hf download {name}) and give its folder: --clip FOLDER"
        return Backbone(name, None, f"{error}; {remedy}", details)
    details |= {"weights_sha256": _weights_sha256(scorer), "hashed": "every weight's name and fp32 values, by name"}
    return Backbone(name, scorer, "", details | {"text_tokens": scorer.text_length})


def _weights_sha256(scorer: Scorer) -> str:
    """Returns the hash of the weights, not of the files: one model comes in several formats."""
    digest = hashlib.sha256()
    for name, weight in sorted(scorer.model.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
