"""MAE (He et al., "Masked Autoencoders Are Scalable Vision Learners", arXiv 2111.06377).

Three quarters of the patches are left out, the encoder sees the rest alone; a small decoder fills the places with one
learned token and predicts the pixels of what was left out. Written from the paper and tested against transformers'
ViTMAEForPreTraining (the authors' code has a licence that excludes commercial use; nothing of it is here).

Legend: B batch, N patches, V visible ones, U = V + 1 with the class token, D width, P numbers of a patch.
"""

from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from parti.mim.backbones import ViTConfig, build_vit, sincos_positions
from parti.mim.masking import kept_patches, random_mask
from parti.mim.network import PixelNetwork
from parti.mim.targets import from_imagenet, normalize_patches, patchify, restore_patches, to_imagenet, unpatchify
from vqgan.config.schema import Config, validate
from vqgan.hub.model_folder import ModelFolder, load_model


class MAEDecoderConfig(Config, fixed=("width", "depth", "heads")):
    """The decoder, which is thrown away after training."""

    width: int = Field(512, gt=0)
    """Channels of a token."""
    depth: int = Field(8, gt=0, le=1000)
    """Number of blocks. One does for fine-tuning; probes of the encoder want more (table 1a)."""
    heads: int = Field(16, gt=0)
    """Attention heads in each."""


class MAEConfig(Config, fixed=("kind", "normalize_targets"), may_change=("mask_ratio",)):
    """The network and its task. The defaults are the paper's ViT-B/16."""

    kind: Literal["mae"] = "mae"
    """What a model folder holds."""
    encoder: ViTConfig = ViTConfig()
    """The encoder; its positions are fixed."""
    decoder: MAEDecoderConfig = MAEDecoderConfig()
    """The decoder."""
    mask_ratio: float = Field(0.75, gt=0, lt=1)
    """Share of the patches that is left out."""
    normalize_targets: bool = True
    """Tell each patch's pixels less their mean, over their deviation: better features (table 1d), but no images that
    can be looked at. Flat patches have nothing left to be predicted: off for drawings."""

    @model_validator(mode="after")
    def _check_something_is_masked_and_something_is_not(self) -> "MAEConfig":
        count = self.encoder.grid[0] * self.encoder.grid[1]
        if not 0 < kept_patches(count, self.mask_ratio) < count:
            raise ValueError(
                f"mask_ratio {self.mask_ratio} of {count} patches leaves {kept_patches(count, self.mask_ratio)} to be "
                "seen; at least one must be seen and one masked"
            )
        for name, part in (("encoder", self.encoder), ("decoder", self.decoder)):
            if part.width % 4 or part.width % part.heads:
                raise ValueError(
                    f"{name}.width {part.width} must be a multiple of 4, for the fixed positions, and of {name}.heads "
                    f"{part.heads}"
                )
        return self


class MAE(PixelNetwork):
    """A masked autoencoder."""

    kinds = ("mae",)
    config: MAEConfig

    def __init__(self, config: MAEConfig) -> None:
        super().__init__(config, config.encoder, build_vit(config.encoder))
        from timm.models.vision_transformer import Block

        decoder, side = config.decoder, config.encoder.patch_size
        self.visible = kept_patches(self.grid[0] * self.grid[1], config.mask_ratio)
        self.decoder_embed = nn.Linear(config.encoder.width, decoder.width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, decoder.width))
        self.decoder_pos_embed = nn.Parameter(sincos_positions(self.grid, decoder.width), requires_grad=False)
        self.decoder_blocks = nn.ModuleList(
            Block(decoder.width, decoder.heads, qkv_bias=True) for _ in range(decoder.depth)
        )
        self.decoder_norm = nn.LayerNorm(decoder.width, eps=1e-6)
        self.decoder_pred = nn.Linear(decoder.width, side * side * 3)
        self._initialize()

    def draw_mask(self, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        return (random_mask(self.grid[0] * self.grid[1], self.config.mask_ratio, rng),)

    def forward(self, images: Float[Tensor, "B 3 H W"], mask: Bool[Tensor, "B N"]) -> Float[Tensor, "B N P"]:
        """Every patch of images in [-1, 1], from the `visible` ones: as many as the mask of each image has false."""
        order = mask.long().argsort(dim=1, stable=True)  # the visible ones first
        return self.decode(self.encode(images, order[:, : self.visible]), order)

    def encode(self, images: Float[Tensor, "B 3 H W"], places: Tensor) -> Float[Tensor, "B U D"]:
        """Normed states of the patches at `places` (B, V), which see nothing else, behind that of the class token."""
        encoder = self.encoder
        tokens = encoder.patch_embed(to_imagenet(images)) + encoder.pos_embed[:, 1:]
        seen = tokens.gather(1, places[..., None].expand(-1, -1, tokens.shape[-1]))
        cls = (encoder.cls_token + encoder.pos_embed[:, :1]).expand(len(images), -1, -1)
        states: Tensor = encoder.norm(encoder.blocks(torch.cat([cls, seen], 1)))
        return states

    def decode(self, states: Float[Tensor, "B U D"], order: Tensor) -> Float[Tensor, "B N P"]:
        """Predictions for all patches; `order` (B, N) says where the seen ones, and then the others, belong."""
        states = self.decoder_embed(states)
        hidden = self.mask_token.to(states.dtype).expand(len(states), order.shape[1] - states.shape[1] + 1, -1)
        tokens = torch.cat([states[:, 1:], hidden], 1)
        tokens = tokens.gather(1, order.argsort(dim=1)[..., None].expand(-1, -1, tokens.shape[-1]))
        tokens = torch.cat([states[:, :1], tokens], 1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            tokens = block(tokens)
        predictions: Tensor = self.decoder_pred(self.decoder_norm(tokens))[:, 1:]
        return predictions

    def targets(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B N P"]:
        patches = patchify(to_imagenet(images), self.patch_size)
        return normalize_patches(patches) if self.config.normalize_targets else patches

    def shown(self, predictions: Float[Tensor, "B N P"], images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
        """With normalized targets the true means and deviations of patches are put in: the network predicts neither."""
        if self.config.normalize_targets:
            predictions = restore_patches(predictions, patchify(to_imagenet(images), self.patch_size))
        return from_imagenet(unpatchify(predictions, self.grid)).clamp(-1, 1)

    def repeated_layers(self) -> list[nn.Module]:
        return [*super().repeated_layers(), *self.decoder_blocks]

    def _initialize(self) -> None:
        """Xavier's uniform for all matrices, the patches' too, taken as a matrix."""
        encoder: Any = self.encoder
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(encoder.patch_embed.proj.weight.view(self.config.encoder.width, -1))
        for token in (encoder.cls_token, self.mask_token):
            nn.init.normal_(token, std=0.02)
        with torch.no_grad():
            encoder.pos_embed.copy_(sincos_positions(self.grid, self.config.encoder.width))
        encoder.pos_embed.requires_grad_(False)

    @classmethod
    def _load(cls, folder: ModelFolder) -> "MAE":
        config = validate(MAEConfig, folder.config, str(folder))
        return load_model(lambda: cls(config), folder.path).eval()
