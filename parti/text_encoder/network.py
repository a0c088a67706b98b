"""The pretraining network: Parti's text encoder, with heads and an image encoder that are discarded afterwards.

In one pass the text encoder (`parti.text.encoders`) reads texts with masked tokens, for a head that predicts them
(BERT, arXiv 1810.04805), and unmasked captions for contrastive matching with images (CLIP, arXiv 2103.00020), because
stage 2 has no masked tokens.

A masked token is a learned vector instead of an embedding, not a token of the vocabulary: the encoder for stage 2 has
the same vocabulary and shapes as without pretraining, and no embedding that is no longer trained.

The text embedding is the mean of the states: the decoder will attend to all of them, and none is special.

Legend: B batch, T text positions, M chosen tokens, W vocabulary, D width, E width of the comparison.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int64
from pydantic import Field, model_validator
from torch import Tensor, nn

from parti.layers.options import TransformerOptions
from parti.text.encoders import TrainedTextEncoder
from parti.text.masked_tokens import MaskedText
from vqgan.config.schema import Config
from vqgan.layers.transformer import Transformer, TransformerConfig

_FIRST_SCALE = 1 / 0.07
"""Initial and largest factor of the cosine similarities (CLIP, section 2.4)."""


class TextPretrainingConfig(
    Config,
    fixed=("encoder_depth", "width", "heads", "mlp_width", "patch_size", "embedding_width"),
    may_change=("dropout",),
):
    """The text encoder, with the names of stage 2 (defaults: Parti 350M), and the discarded parts."""

    encoder_depth: int = Field(12, gt=0)
    """Blocks of the text encoder; stage 2's model.encoder_depth."""
    width: int = Field(1024, gt=0)
    """Width of the text encoder; stage 2's model.width."""
    heads: int = Field(16, gt=0)
    """Attention heads; stage 2's model.heads."""
    mlp_width: int = Field(4096, gt=0)
    """Hidden width of each feed-forward; stage 2's model.mlp_width."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout on every residual branch; stage 2 may have another."""
    options: TransformerOptions = TransformerOptions()
    """Options of its blocks; stage 2's model.options."""
    image_encoder: TransformerConfig = TransformerConfig(depth=12, width=768, heads=12, mlp_width=3072)
    """The image encoder; discarded."""
    patch_size: int = Field(16, gt=0)
    """Side of the image encoder's patches in pixels."""
    embedding_width: int = Field(512, gt=0)
    """Width of the joint embedding of texts and images."""

    @model_validator(mode="after")
    def _check_heads(self) -> "TextPretrainingConfig":
        if self.width % self.heads:
            raise ValueError(f"width {self.width} does not divide into {self.heads} heads; choose a multiple")
        return self


class Read(NamedTuple):
    """Logits (fp32) of the chosen tokens, row by row; unit vectors (fp32) of images and texts; their scale."""

    logits: Float[Tensor, "M W"]
    images: Float[Tensor, "B E"]
    texts: Float[Tensor, "B E"]
    scale: Float[Tensor, ""]


class TextEncoderPretraining(nn.Module):
    """The pretraining network; `image_size` is the side of the images in pixels."""

    def __init__(
        self, config: TextPretrainingConfig, *, vocab_size: int, length: int, pad_id: int, image_size: int
    ) -> None:
        super().__init__()
        width = config.width
        self.text_encoder = TrainedTextEncoder(
            vocab_size,
            length,
            config.encoder_depth,
            width,
            config.heads,
            config.mlp_width,
            config.dropout,
            config.options,
        )
        self.hidden_token = nn.Parameter(torch.empty(width))
        # BERT's head: one more layer, then a projection tied to the embeddings.
        self.token_head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
        self.token_bias = nn.Parameter(torch.zeros(vocab_size))
        self.text_projection = nn.Linear(width, config.embedding_width)
        self.image_encoder = ImageEncoder(config.image_encoder, config.patch_size, image_size)
        self.image_projection = nn.Linear(config.image_encoder.width, config.embedding_width)
        self.log_scale = nn.Parameter(torch.tensor(math.log(_FIRST_SCALE)))
        self._pad_id = pad_id
        self._init_weights()

    def forward(self, images: Float[Tensor, "B 3 H W"], ids: Int64[Tensor, "B T"], masked: MaskedText) -> Read:
        """Computes both heads; `ids` are the captions of `images`, `masked` as many texts with masked tokens."""
        embed = self.text_encoder.embedding
        guessed = torch.where(masked.hidden[..., None], self.hidden_token, embed(masked.ids))
        mask = torch.cat([masked.ids, ids]) != self._pad_id
        with_hidden, whole = self.text_encoder.read(torch.cat([guessed, embed(ids)]), mask).chunk(2)
        seen = mask[len(ids) :, :, None]
        mean = (whole * seen).sum(1) / seen.sum(1)
        return Read(
            self._masked_logits(with_hidden[masked.chosen]),
            F.normalize(self.image_projection(self.image_encoder(images)).float(), dim=-1),
            F.normalize(self.text_projection(mean).float(), dim=-1),
            self.log_scale.exp(),
        )

    def repeated_layers(self) -> list[nn.Module]:
        """The layers of the text side and of the image side."""
        return [*self.text_encoder.repeated_layers(), *self.image_encoder.transformer.blocks]

    def _masked_logits(self, states: Float[Tensor, "M D"]) -> Float[Tensor, "M W"]:
        # fp32, as the decoder's logits.
        with torch.autocast(states.device.type, enabled=False):
            return F.linear(self.token_head(states.float()), self.text_encoder.embedding.weight, self.token_bias)

    def _init_weights(self) -> None:
        # Initialized like the generator's text encoder.
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=module.in_features**-0.5)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=0.02)
        for vector in (self.text_encoder.positions, self.hidden_token):
            nn.init.trunc_normal_(vector, std=0.02)


class ImageEncoder(nn.Module):
    """A vision transformer; the image embedding is the mean of its patch states."""

    def __init__(self, config: TransformerConfig, patch_size: int, image_size: int) -> None:
        super().__init__()
        side = image_size // patch_size
        self.patches = nn.Conv2d(3, config.width, patch_size, patch_size)
        self.transformer = Transformer(config, (side, side))

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        return self.transformer(rearrange(self.patches(images), "b d h w -> b (h w) d")).mean(1)
