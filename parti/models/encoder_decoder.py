"""Parti: a text encoder and an image-token decoder (arXiv 2206.10789, section 2.2; SPEC D).

Pre-LN blocks with ReLU feed-forwards and biases, learned positions on both sides, an extra LayerNorm at both
outputs, an untied output head in fp32. The decoder reads a start token and then the codes, each one position late.
Departure from the paper: the decoder's self-attention is full causal attention, not its convolution-shaped mask.

Legend: B batch, T text positions, N image codes, V image vocabulary, D width.
"""

from collections.abc import Sequence
from typing import Literal, cast

import torch
from jaxtyping import Bool, Float, Int64
from pydantic import Field, model_validator
from torch import Tensor, nn

from parti.layers.attention import CrossAttention, KeyValueCache, SelfAttention
from parti.layers.feed_forward import feed_forward
from parti.models.generator import Generator, Logits, Memory
from parti.models.token_space import TokenSpace
from parti.text.encoders import (
    PretrainedTextEncoder,
    PretrainedTextEncoderConfig,
    TextEncoder,
    TextEncoderConfig,
    TrainedTextEncoder,
    TrainedTextEncoderConfig,
)
from vqgan.config import Config


class EncoderDecoderConfig(Config):
    """Parti's encoder-decoder. The defaults are the paper's 350M model."""

    kind: Literal["encoder_decoder"] = "encoder_decoder"
    """Text encoder and image decoder with cross-attention (Parti)."""
    text_encoder: TextEncoderConfig = TrainedTextEncoderConfig()
    """What reads the text."""
    encoder_depth: int = Field(12, gt=0)
    """Blocks of the trained text encoder; a pretrained one has its own number."""
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


class EncoderDecoder(Generator):
    """See the module's docstring. Raises ConfigError for a pretrained text encoder that cannot be had or is too small.

    `config` then also describes that encoder's network, so that a saved model needs nothing else.
    """

    config: EncoderDecoderConfig

    def __init__(self, config: EncoderDecoderConfig, tokens: TokenSpace) -> None:
        super().__init__()
        self.tokens = tokens
        width = config.width
        self.text_encoder = _build_text_encoder(config, tokens)
        if isinstance(self.text_encoder, PretrainedTextEncoder):
            config = config.model_copy(update={"text_encoder": self.text_encoder.config})
        self.config = config
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

    def forward(self, text_ids: Int64[Tensor, "B T"], codes: Int64[Tensor, "B N"]) -> Logits:
        memory = self.encode_text(text_ids)
        start = torch.full_like(codes[:, :1], self.tokens.image_vocab_size)
        x = self.image_embedding(torch.cat([start, codes[:, :-1]], dim=1)) + self.image_positions[: codes.shape[1]]
        x = self.dropout(x)
        for block, (keys, values) in zip(self.decoder, memory.layers, strict=True):
            x = block(x, keys, values, memory.mask)
        return Logits(self._logits(x))

    def encode_text(self, text_ids: Int64[Tensor, "B T"]) -> Memory:
        if text_ids.shape[1] != self.tokens.text_length:
            raise ValueError(
                f"this model reads {self.tokens.text_length} text positions, received {text_ids.shape[1]}; "
                "encode the captions with the text tokenizer that was saved with it"
            )
        mask = text_ids != self.tokens.text_pad_id
        x = self.text_encoder(text_ids, mask)
        return Memory([block.cross_attention.project_memory(x) for block in self.decoder], mask)

    def new_caches(self, batch: int) -> list[KeyValueCache]:
        return [block.self_attention.new_cache(batch, self.tokens.image_length) for block in self.decoder]

    def step(
        self, previous: Int64[Tensor, "B"] | None, position: int, memory: Memory, caches: list[KeyValueCache]
    ) -> Float[Tensor, "B V"]:
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
        initialised = set(self.text_encoder.modules()) if self.text_encoder.is_initialised else set()
        for module in self.modules():
            if module in initialised:
                continue
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=self.config.width**-0.5)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=0.02)
        if isinstance(self.text_encoder, TrainedTextEncoder):
            nn.init.trunc_normal_(self.text_encoder.positions, std=0.02)
        nn.init.trunc_normal_(self.image_positions, std=0.02)
        # A fresh model is uniform over the codes: cross-entropy starts at ln V.
        nn.init.zeros_(self.head.weight)


class DecoderBlock(nn.Module):
    """Pre-LN causal self-attention, cross-attention to the text, then the feed-forward."""

    def __init__(self, config: EncoderDecoderConfig) -> None:
        super().__init__()
        self.self_attention_norm = nn.LayerNorm(config.width)
        self.self_attention = SelfAttention(config.width, config.heads)
        self.cross_attention_norm = nn.LayerNorm(config.width)
        self.cross_attention = CrossAttention(config.width, config.heads)
        self.mlp_norm = nn.LayerNorm(config.width)
        self.mlp = feed_forward(config.width, config.mlp_width)
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


def _build_text_encoder(config: EncoderDecoderConfig, tokens: TokenSpace) -> TextEncoder:
    chosen, width = config.text_encoder, config.width
    if isinstance(chosen, PretrainedTextEncoderConfig):
        return PretrainedTextEncoder(chosen, tokens.text_vocab_size, tokens.text_length, width)
    return TrainedTextEncoder(
        tokens.text_vocab_size,
        tokens.text_length,
        config.encoder_depth,
        width,
        config.heads,
        config.mlp_width,
        config.dropout,
    )
