"""Contrastive image-text matching: a generated image should fit its caption better than those of other images.

joint: with the discriminators' own features, which learn the matching on real images at the same time (XMC-GAN,
arXiv 2101.04702, section 4). clip: with a frozen CLIP, such as a run of tools/train_reranker.py (as AttnGAN with its
DAMSM, arXiv 1711.10485). Both use CLIP's loss.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from parti.losses.contrastive import Contrast, contrastive_loss
from parti.reranker.scorer import Scorer
from vqgan.config.schema import Config
from vqgan.fingerprints import FrozenPart


class JointMatchingConfig(Config, fixed=("kind",), may_change=("weight",)):
    """Matching with the discriminators' features."""

    kind: Literal["joint"] = "joint"
    """Learned with the discriminators, at every scale."""
    weight: float = Field(1.0, gt=0)
    """Weight in the losses of generator and discriminators."""


class ClipMatchingConfig(Config, fixed=("kind",), may_change=("folder", "weight")):
    """Matching with a frozen CLIP."""

    kind: Literal["clip"] = "clip"
    """A trained dual encoder, which scores the largest images."""
    folder: str
    """Run folder of tools/train_reranker.py, or any CLIP (folder or Hub name)."""
    weight: float = Field(5.0, gt=0)
    """Weight of the generator's term. AttnGAN has 5 on birds and 50 on COCO, for its own encoder."""


MatchingConfig = Annotated[JointMatchingConfig | ClipMatchingConfig, Field(discriminator="kind")]


def clip_matcher(config: MatchingConfig | None, device: torch.device) -> "ClipMatcher | None":
    """Loads the frozen CLIP of a config; None for another kind. Raises ModelFolderError if there is none."""
    return ClipMatcher(config.folder, device) if isinstance(config, ClipMatchingConfig) else None


class ClipMatcher:
    """A frozen CLIP that matches images and captions. Raises ModelFolderError if there is none."""

    def __init__(self, folder: str, device: torch.device) -> None:
        self._scorer = Scorer.from_pretrained(folder).to(device)
        self._scorer.model.requires_grad_(False).eval()
        prepared = self._scorer.processor.image_processor
        size = dict(prepared.size)
        self._resized = int(size.get("shortest_edge") or size["height"])
        self._cropped = (
            int(prepared.crop_size["height"]) if getattr(prepared, "do_center_crop", False) else self._resized
        )
        self._mean = torch.tensor(prepared.image_mean, device=device).view(3, 1, 1)
        self._deviation = torch.tensor(prepared.image_std, device=device).view(3, 1, 1)

    def __call__(
        self, image_list: Float[Tensor, "B 3 H W"], captions: Sequence[str], accelerator: Accelerator
    ) -> Contrast:
        """Computes the contrastive loss of images in [-1, 1]; differentiable with respect to the images."""
        model, tokens = self._scorer.model, self._scorer.tokens(captions)
        found = model(pixel_values=self.pixels(image_list), **tokens)
        images, texts = (F.normalize(part.float(), dim=-1) for part in (found.image_embeds, found.text_embeds))
        return contrastive_loss(images, texts, tokens["input_ids"], model.logit_scale.exp().detach(), accelerator)

    def as_frozen_part(self) -> FrozenPart:
        """Returns the CLIP as a frozen part of the run."""
        return self._scorer.as_frozen_part()

    def pixels(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 h w"]:
        """Applies the CLIP's own preprocessing, without its rounding to 256 levels."""
        if images.shape[-1] != self._resized:
            size = (self._resized, self._resized)
            images = F.interpolate(images, size, mode="bicubic", antialias=True).clamp(-1, 1)
        edge = (self._resized - self._cropped) // 2
        images = images[:, :, edge : edge + self._cropped, edge : edge + self._cropped]
        return ((images + 1) / 2 - self._mean) / self._deviation
