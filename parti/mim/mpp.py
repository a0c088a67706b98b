"""ViT's masked patch prediction (Dosovitskiy et al., "An Image is Worth 16x16 Words", arXiv 2010.11929, B.1.2).

Half of the patches are predicted: of these 80% are [mask], 10% another patch, 10% as they are. The target of each is
its mean color, one of 512 classes. There is no published code; what the paper leaves open is said here: the number of
chosen patches is exact, another patch is one of the same image, and embeddings are exchanged before positions are
added.

Legend: B batch, N patches, M chosen patches of the batch, K classes.
"""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from pydantic import Field, model_validator
from torch import Tensor, nn

from parti.mim.backbones import ViTConfig, build_vit
from parti.mim.masking import corruption
from parti.mim.network import ClassNetwork
from parti.mim.targets import MEAN_COLOR_CLASSES, to_imagenet
from vqgan.config.schema import Config, validate
from vqgan.hub.model_folder import ModelFolder, load_model


class MPPConfig(Config, fixed=("kind",), may_change=("chosen", "hidden", "replaced")):
    """The network and its corruption. The defaults are the paper's ViT-B/16."""

    kind: Literal["mpp"] = "mpp"
    """What a model folder holds."""
    encoder: ViTConfig = ViTConfig()
    """The encoder."""
    chosen: float = Field(0.5, gt=0, le=1)
    """Share of the patches that are predicted."""
    hidden: float = Field(0.8, ge=0, le=1)
    """Share of the chosen ones for which [mask] stands."""
    replaced: float = Field(0.1, ge=0, le=1)
    """Share of the chosen ones that become another patch; what is left stays as it is."""

    @model_validator(mode="after")
    def _check_shares(self) -> "MPPConfig":
        if self.hidden + self.replaced > 1:
            raise ValueError(f"hidden {self.hidden} and replaced {self.replaced} are more than all; lower one")
        count = self.encoder.grid[0] * self.encoder.grid[1]
        if not round(self.chosen * count):
            raise ValueError(f"chosen {self.chosen} of {count} patches is none; raise it")
        return self


class MPP(ClassNetwork):
    """A ViT with a head of mean colors."""

    kinds = ("mpp",)
    config: MPPConfig

    def __init__(self, config: MPPConfig) -> None:
        super().__init__(config, config.encoder, build_vit(config.encoder))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.encoder.width))
        self.head = nn.Linear(config.encoder.width, MEAN_COLOR_CLASSES)
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def draw_mask(self, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        config = self.config
        count = self.grid[0] * self.grid[1]
        return tuple(corruption(count, rng, chosen=config.chosen, hidden=config.hidden, replaced=config.replaced))

    def forward(
        self,
        images: Float[Tensor, "B 3 H W"],
        chosen: Bool[Tensor, "B N"],
        hidden: Bool[Tensor, "B N"],
        source: Int64[Tensor, "B N"],
    ) -> Float[Tensor, "M K"]:
        """Logits of the chosen patches of images in [-1, 1], image by image, row by row."""
        encoder = self.encoder
        embedded = encoder.patch_embed(to_imagenet(images))
        tokens = embedded.gather(1, source[..., None].expand(-1, -1, embedded.shape[-1]))
        tokens = torch.where(hidden[..., None], self.mask_token.to(tokens.dtype), tokens)
        tokens = torch.cat([encoder.cls_token.expand(len(tokens), -1, -1), tokens], 1) + encoder.pos_embed
        states = encoder.norm(encoder.blocks(encoder.pos_drop(tokens)))
        logits: Tensor = self.head(states[:, 1:][chosen])
        return logits

    @classmethod
    def _load(cls, folder: ModelFolder) -> "MPP":
        config = validate(MPPConfig, folder.config, str(folder))
        return load_model(lambda: cls(config), folder.path).eval()
