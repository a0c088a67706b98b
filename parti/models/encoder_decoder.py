"""Parti: a text encoder and an image-token decoder (arXiv 2206.10789, section 2.2; papers.md D).

Pre-LN blocks with ReLU feed-forwards and biases, learned positions on both sides, a final LayerNorm on both sides, an
untied output head in fp32. The decoder reads a start token and then the codes, shifted by one. Its self-attention is
causal by default; `attention: convolution` is the paper's convolution-shaped mask, whose kernel and borders the paper
does not specify (papers.md D.3 and C.2 give the choice made here).

Legend: B batch, T text positions, N image codes, V image vocabulary, D width.
"""

from collections.abc import Sequence
from typing import Literal, cast

import torch
from jaxtyping import Bool, Float, Int64
from pydantic import Field, model_validator
from torch import Tensor, nn

from parti.layers.activation_checkpointing import checkpointed
from parti.layers.attention import CrossAttention, SelfAttention
from parti.layers.feed_forward import feed_forward
from parti.layers.kv_cache import KeyValueCache
from parti.layers.logits import fp32_logits
from parti.layers.lookup import lookup
from parti.layers.norms import norm
from parti.layers.options import TransformerOptions
from parti.layers.rotary import RotaryPositions
from parti.layers.shared_text import SharedText
from parti.layers.sparse_attention import SparsePattern
from parti.layers.sparse_masks import MaskKind
from parti.models.generator import DecodingState, Generator, Logits, TextStates
from parti.models.token_space import TokenSpace
from parti.text.encoders import (
    PretrainedTextEncoder,
    PretrainedTextEncoderConfig,
    TextEncoder,
    TextEncoderConfig,
    TrainedTextEncoder,
    TrainedTextEncoderConfig,
)
from vqgan.config.schema import Config
from vqgan.hub.initial_weights import Resizer
from vqgan.layers.positions import grid_resizer


class EncoderDecoderConfig(
    Config,
    fixed=("kind", "encoder_depth", "decoder_depth", "width", "heads", "mlp_width", "attention", "kernel"),
    may_change=("dropout", "checkpoint_activations"),
):
    """Parti's encoder-decoder. The defaults are the paper's 350M model."""

    kind: Literal["encoder_decoder"] = "encoder_decoder"
    """Text encoder and image decoder with cross-attention (Parti)."""
    text_encoder: TextEncoderConfig = TrainedTextEncoderConfig()
    """The text encoder."""
    encoder_depth: int = Field(12, gt=0)
    """Blocks of the trained text encoder; a pretrained one has its own depth."""
    decoder_depth: int = Field(12, gt=0)
    """Blocks of the image decoder."""
    width: int = Field(1024, gt=0)
    """Model width d."""
    heads: int = Field(16, gt=0)
    """Attention heads; Parti keeps width / heads at 64."""
    mlp_width: int = Field(4096, gt=0)
    """Hidden width of each feed-forward."""
    attention: Literal["full", "convolution"] = "full"
    """Codes that a code attends to. full: all before it; convolution: a kernel around it, as in the paper."""
    kernel: int = Field(11, gt=0)
    """With attention=convolution: odd side of the kernel, in codes."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout on every residual branch."""
    options: TransformerOptions = TransformerOptions()
    """Options of later transformers; off."""
    checkpoint_activations: bool = False
    """Activation checkpointing of each block except those of a pretrained text encoder: less memory, a third more
    time."""

    @model_validator(mode="after")
    def _check_sizes(self) -> "EncoderDecoderConfig":
        if self.width % self.heads:
            raise ValueError(f"width {self.width} does not divide into {self.heads} heads; choose a multiple")
        self.options.check_heads(self.width, self.heads)
        if self.kernel % 2 == 0:
            raise ValueError(
                f"a kernel is centered on its state, so odd; received {self.kernel}, use {self.kernel + 1}"
            )
        return self


class EncoderDecoder(Generator):
    """Parti's transformer. Raises ConfigError for a pretrained text encoder that cannot be loaded or is too small.

    `config` then also gets that encoder's architecture, so that a saved model is self-contained.
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
        self.kernel = config.kernel
        # One extra row, the start token, which the head never predicts.
        self.image_embedding = nn.Embedding(tokens.image_vocab_size + 1, width)
        self.image_positions = nn.Parameter(torch.empty(tokens.image_length, width))
        rotary = RotaryPositions(tokens.image_grid, width // config.heads) if config.options.rotary else None
        self.decoder: Sequence[DecoderBlock] = cast(
            Sequence[DecoderBlock], nn.ModuleList(DecoderBlock(config, rotary) for _ in range(config.decoder_depth))
        )
        # Behind the blocks, of which a depth that is none ends the building (`vqgan.hub.construction`).
        self.layer_kinds: list[MaskKind] = [config.attention] * config.decoder_depth
        self.decoder_norm = norm(width, config.options.norm)
        self.head = nn.Linear(width, tokens.image_vocab_size)
        self.dropout = nn.Dropout(config.dropout)
        self._init_weights()

    def forward(self, text_ids: Int64[Tensor, "B T"], codes: Int64[Tensor, "B N"]) -> Logits:
        text, mask = self._prefill(text_ids)
        start = torch.full_like(codes[:, :1], self.start_code)
        x = self.image_embedding(torch.cat([start, codes[:, :-1]], dim=1)) + self.image_positions[: codes.shape[1]]
        x = self.dropout(x)
        pattern = SparsePattern(self.config.attention, self.tokens.image_grid, self.kernel)
        for block in self.decoder:
            x = checkpointed(block, self.config.checkpoint_activations)(x, text, mask, pattern)
        return Logits(self._logits(x))

    def encode_text(self, text_ids: Int64[Tensor, "B T"]) -> TextStates:
        text, mask = self._prefill(text_ids)
        return TextStates([block.cross_attention.project_memory(text) for block in self.decoder], mask)

    def _prefill(self, text_ids: Int64[Tensor, "B T"]) -> tuple[Float[Tensor, "B T D"], Bool[Tensor, "B T"]]:
        if text_ids.shape[1] != self.tokens.text_length:
            raise ValueError(
                f"this model reads {self.tokens.text_length} text positions, received {text_ids.shape[1]}; "
                "encode the captions with the text tokenizer that was saved with it"
            )
        mask = text_ids != self.tokens.text_pad_id
        return self.text_encoder(text_ids, mask), mask

    def step(self, previous: Int64[Tensor, "B"], position: int | Tensor, state: DecodingState) -> Float[Tensor, "B V"]:
        x = self.image_embedding(previous) + lookup(self.image_positions, position)
        for block, cache, texts in zip(self.decoder, state.caches, state.texts, strict=True):
            x = block.step(x, cache, texts, position)
        return self._logits(x)

    def decode_layers(self) -> list[nn.Module]:
        return list(self.decoder)

    def text_rows(self) -> tuple[str, ...]:
        return ("text_encoder.embedding.weight",) if isinstance(self.text_encoder, TrainedTextEncoder) else ()

    def code_rows(self) -> tuple[str, ...]:
        return ("image_embedding.weight", "head.weight", "head.bias")

    def resizers(self) -> dict[str, Resizer]:
        return {"image_positions": grid_resizer(self.tokens.image_grid)}

    def repeated_layers(self) -> list[nn.Module]:
        return [*self.text_encoder.repeated_layers(), *self.decoder]

    def image_head_layer(self) -> nn.Linear:
        return self.head

    def _logits(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B V"]:
        return fp32_logits(self.head, self.decoder_norm(x.float()))

    def _init_weights(self) -> None:
        initialized = set(self.text_encoder.modules()) if self.text_encoder.is_initialized else set()
        for module in self.modules():
            if module in initialized:
                continue
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=self.config.width**-0.5)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=0.02)
        if isinstance(self.text_encoder, TrainedTextEncoder):
            nn.init.trunc_normal_(self.text_encoder.positions, std=0.02)
        nn.init.trunc_normal_(self.image_positions, std=0.02)
        # A new model is uniform over the codes: cross-entropy starts at ln V.
        nn.init.zeros_(self.head.weight)


class DecoderBlock(nn.Module):
    """Pre-LN causal self-attention, cross-attention to the text, then the feed-forward."""

    def __init__(self, config: EncoderDecoderConfig, rotary: RotaryPositions | None) -> None:
        super().__init__()
        width, options = config.width, config.options
        self.self_attention_norm = norm(width, options.norm)
        self.self_attention = SelfAttention(width, config.heads, options.qk_norm, rotary)
        self.cross_attention_norm = norm(width, options.norm)
        self.cross_attention = CrossAttention(width, config.heads, options.qk_norm)
        self.mlp_norm = norm(width, options.norm)
        self.mlp = feed_forward(width, config.mlp_width, options.feed_forward or "relu")
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Float[Tensor, "B N D"],
        text: Float[Tensor, "B T D"],
        mask: Bool[Tensor, "B T"],
        pattern: SparsePattern,
    ) -> Float[Tensor, "B N D"]:
        x = x + self.dropout(self.self_attention.causal_forward(self.self_attention_norm(x), pattern))
        keys, values = self.cross_attention.project_memory(text)
        x = x + self.dropout(self.cross_attention(self.cross_attention_norm(x), keys, values, mask))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))

    def step(
        self, x: Float[Tensor, "B D"], cache: KeyValueCache, texts: Sequence[SharedText], position: int | Tensor
    ) -> Float[Tensor, "B D"]:
        x = x + self.self_attention.step(self.self_attention_norm(x), cache, position)
        x = x + self.cross_attention.step(self.cross_attention_norm(x), texts)
        return x + self.mlp(self.mlp_norm(x))


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
        config.options,
        config.checkpoint_activations,
    )
