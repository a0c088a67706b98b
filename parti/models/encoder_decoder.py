"""Parti: a text encoder and an image-token decoder (arXiv 2206.10789, section 2.2; SPEC D).

Pre-LN blocks with ReLU feed-forwards and biases, learned positions on both sides, an extra LayerNorm at both
outputs, an untied output head in fp32. The decoder reads a start token and then the codes, each one position late.
Departure from the paper: the decoder's self-attention is full causal attention, not its convolution-shaped mask.

Legend: B batch, T text positions, N image codes, V image vocabulary, D width.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int64
from pydantic import Field, model_validator
from torch import Tensor, nn

from parti.layers.attention import CrossAttention, KeyValueCache, SelfAttention
from parti.models.token_space import TokenSpace
from vqgan.config import Config


class EncoderDecoderConfig(Config):
    """Parti's encoder-decoder. The defaults are the paper's 350M model."""

    kind: Literal["encoder_decoder"] = "encoder_decoder"
    """Text encoder and image decoder with cross-attention (Parti)."""
    encoder_depth: int = Field(12, gt=0)
    """Blocks of the text encoder."""
    decoder_depth: int = Field(12, gt=0)
    """Blocks of the image decoder."""
    width: int = Field(1024, gt=0)
    """Model width d."""
    heads: int = Field(16, gt=0)
    """Attention heads; Parti keeps width / heads at 64."""
    mlp_width: int = Field(4096, gt=0)
    """Hidden width of each feed-forward."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout on every residual branch."""

    @model_validator(mode="after")
    def _check_heads(self) -> "EncoderDecoderConfig":
        if self.width % self.heads:
            raise ValueError(f"width {self.width} does not divide into {self.heads} heads; choose a multiple")
        return self


class Memory(NamedTuple):
    """What the decoder knows of the text: every layer's keys and values (B, H, T, d), and which positions count."""

    layers: list[tuple[Tensor, Tensor]]
    mask: Bool[Tensor, "B T"]


class EncoderDecoder(nn.Module):
    """See the module's docstring. `pad_id` marks text positions that nobody attends to."""

    def __init__(self, config: EncoderDecoderConfig, tokens: TokenSpace, pad_id: int = 0) -> None:
        super().__init__()
        self.config = config
        self.tokens = tokens
        self.pad_id = pad_id
        width = config.width
        self.text_embedding = nn.Embedding(tokens.text_vocab_size, width)
        self.text_positions = nn.Parameter(torch.empty(tokens.text_length, width))
        self.encoder = nn.ModuleList(EncoderBlock(config) for _ in range(config.encoder_depth))
        self.encoder_norm = nn.LayerNorm(width)
        # One row more than there are codes: the last is the start token, which the head never emits.
        self.image_embedding = nn.Embedding(tokens.image_vocab_size + 1, width)
        self.image_positions = nn.Parameter(torch.empty(tokens.image_length, width))
        self.decoder: Sequence[DecoderBlock] = cast(
            Sequence[DecoderBlock], nn.ModuleList(DecoderBlock(config) for _ in range(config.decoder_depth))
        )
        self.decoder_norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, tokens.image_vocab_size)
        self.dropout = nn.Dropout(config.dropout)
        self._init_weights()

    def forward(self, text_ids: Int64[Tensor, "B T"], codes: Int64[Tensor, "B N"]) -> Float[Tensor, "B N V"]:
        """Logits (fp32) of every code given the text and the codes before it."""
        memory = self.encode_text(text_ids)
        start = torch.full_like(codes[:, :1], self.tokens.image_vocab_size)
        x = self.image_embedding(torch.cat([start, codes[:, :-1]], dim=1)) + self.image_positions[: codes.shape[1]]
        x = self.dropout(x)
        for block, (keys, values) in zip(self.decoder, memory.layers, strict=True):
            x = block(x, keys, values, memory.mask)
        return self._logits(x)

    def encode_text(self, text_ids: Int64[Tensor, "B T"]) -> Memory:
        """Run the text encoder, and project its output for every decoder layer."""
        if text_ids.shape[1] != self.tokens.text_length:
            raise ValueError(
                f"this model reads {self.tokens.text_length} text positions, received {text_ids.shape[1]}; "
                "encode the captions with the text tokenizer that was saved with it"
            )
        mask = text_ids != self.pad_id
        x = self.dropout(self.text_embedding(text_ids) + self.text_positions)
        for block in self.encoder:
            x = block(x, mask)
        x = self.encoder_norm(x)
        return Memory([block.cross_attention.project_memory(x) for block in self.decoder], mask)

    def new_caches(self, batch: int) -> list[KeyValueCache]:
        """One empty self-attention cache a layer, for a whole picture."""
        return [block.self_attention.new_cache(batch, self.tokens.image_length) for block in self.decoder]

    def step(
        self, previous: Int64[Tensor, "B"] | None, position: int, memory: Memory, caches: list[KeyValueCache]
    ) -> Float[Tensor, "B V"]:
        """Logits (fp32) of the code at `position`, given the code before it (None at position 0) and the caches."""
        if previous is None:
            previous = torch.full(
                (len(memory.mask),), self.tokens.image_vocab_size, dtype=torch.int64, device=memory.mask.device
            )
        x = (self.image_embedding(previous) + self.image_positions[position])[:, None]
        for block, cache, (keys, values) in zip(self.decoder, caches, memory.layers, strict=True):
            x = block.step(x, keys, values, memory.mask, cache, position)
        return self._logits(x)[:, 0]

    def _logits(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N V"]:
        # fp32: small differences between thousands of logits decide what is sampled.
        with torch.autocast(x.device.type, enabled=False):
            return self.head(self.decoder_norm(x.float()))

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=self.config.width**-0.5)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.trunc_normal_(self.text_positions, std=0.02)
        nn.init.trunc_normal_(self.image_positions, std=0.02)
        # A fresh model is uniform over the codes: cross-entropy starts at ln V.
        nn.init.zeros_(self.head.weight)


class EncoderBlock(nn.Module):
    """Pre-LN self-attention over the text, then the feed-forward."""

    def __init__(self, config: EncoderDecoderConfig) -> None:
        super().__init__()
        self.self_attention_norm = nn.LayerNorm(config.width)
        self.self_attention = SelfAttention(config.width, config.heads)
        self.mlp_norm = nn.LayerNorm(config.width)
        self.mlp = _feed_forward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Float[Tensor, "B T D"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        x = x + self.dropout(self.self_attention(self.self_attention_norm(x), key_mask=mask))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


class DecoderBlock(nn.Module):
    """Pre-LN causal self-attention, cross-attention to the text, then the feed-forward."""

    def __init__(self, config: EncoderDecoderConfig) -> None:
        super().__init__()
        self.self_attention_norm = nn.LayerNorm(config.width)
        self.self_attention = SelfAttention(config.width, config.heads)
        self.cross_attention_norm = nn.LayerNorm(config.width)
        self.cross_attention = CrossAttention(config.width, config.heads)
        self.mlp_norm = nn.LayerNorm(config.width)
        self.mlp = _feed_forward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Float[Tensor, "B N D"], keys: Tensor, values: Tensor, mask: Bool[Tensor, "B T"]
    ) -> Float[Tensor, "B N D"]:
        x = x + self.dropout(self.self_attention(self.self_attention_norm(x), causal=True))
        return self._read_text_and_think(x, keys, values, mask)

    def step(
        self,
        x: Float[Tensor, "B 1 D"],
        keys: Tensor,
        values: Tensor,
        mask: Bool[Tensor, "B T"],
        cache: KeyValueCache,
        position: int,
    ) -> Float[Tensor, "B 1 D"]:
        x = x + self.dropout(self.self_attention.step(self.self_attention_norm(x), cache, position))
        return self._read_text_and_think(x, keys, values, mask)

    def _read_text_and_think(self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        x = x + self.dropout(self.cross_attention(self.cross_attention_norm(x), keys, values, mask))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


def _feed_forward(config: EncoderDecoderConfig) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(config.width, config.mlp_width), nn.ReLU(), nn.Linear(config.mlp_width, config.width)
    )
