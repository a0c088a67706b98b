"""DALL-E's decoder-only transformer over text and image in one sequence (arXiv 2102.12092, section 2.2; papers.md C.2).

A state reads the previous token and predicts the token at its own position:

    predicts   t0     t1  ...  t(T-1)   z0     z1  ...  z(N-1)
    reads      start  t0  ...  t(T-2)   start  z0  ...  z(N-2)

So the last text slot is predicted but never read: an image is conditioned on the first T - 1 tokens of its caption.
Text attends to earlier text; an image state attends to all text and, by the masks of `parti.layers.sparse_masks`, to
some of the image. Padding is not masked out: each text slot has its own learned padding embedding. Padding is not a
target.

The paper specifies neither block layout nor head: blocks are pre-LN with GELU and biases, and text and image have
separate heads, because the position determines the vocabulary; the paper mentions no dropout.

Legend: B batch, T text slots, N image codes, S = T + N states, V image vocabulary, W text vocabulary, D width.
"""

from collections.abc import Sequence
from typing import Literal, cast

import torch
from jaxtyping import Float, Int64
from pydantic import Field, model_validator
from torch import Tensor, nn

from parti.layers.activation_checkpointing import checkpointed
from parti.layers.feed_forward import feed_forward
from parti.layers.gradient_scales import Branch, BranchEnds
from parti.layers.joint_attention import JointAttention
from parti.layers.kv_cache import KeyValueCache
from parti.layers.logits import fp32_logits
from parti.layers.lookup import lookup
from parti.layers.norms import norm
from parti.layers.options import TransformerOptions
from parti.layers.rotary import RotaryPositions
from parti.layers.shared_text import SharedText
from parti.layers.sparse_attention import SparsePattern
from parti.layers.sparse_masks import MaskKind, dalle_layer_kinds
from parti.models.generator import DecodingState, Generator, Logits, TextStates
from parti.models.token_space import TokenSpace
from vqgan.config.schema import Config
from vqgan.hub.initial_weights import Resizer, first_rows
from vqgan.layers.positions import line_resizer


class DecoderOnlyConfig(
    Config,
    fixed=("kind", "depth", "width", "heads", "mlp_width", "attention", "kernel"),
    may_change=("dropout", "checkpoint_activations"),
):
    """DALL-E's transformer. The defaults are the paper's, 12 billion parameters; give smaller ones for less."""

    kind: Literal["decoder_only"] = "decoder_only"
    """One transformer over text and image states (DALL-E)."""
    depth: int = Field(64, gt=0)
    """Number of blocks."""
    width: int = Field(3968, gt=0)
    """Model width d."""
    heads: int = Field(62, gt=0)
    """Attention heads; DALL-E keeps width / heads at 64."""
    mlp_width: int = Field(15_872, gt=0)
    """Hidden width of each feed-forward, 4 d in the paper."""
    attention: Literal["sparse", "full"] = "sparse"
    """Between image states. sparse: DALL-E's order of row, column and convolutional masks; full: all before."""
    kernel: int = Field(11, gt=0)
    """With attention=sparse: odd side of the last layer's convolutional mask, in codes."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on every residual branch."""
    options: TransformerOptions = TransformerOptions()
    """Options of later transformers; off."""
    checkpoint_activations: bool = False
    """Activation checkpointing of each block: less memory, a third more time."""

    @model_validator(mode="after")
    def _check_sizes(self) -> "DecoderOnlyConfig":
        if self.width % self.heads:
            raise ValueError(f"width {self.width} does not divide into {self.heads} heads; choose a multiple")
        self.options.check_heads(self.width, self.heads)
        if self.kernel % 2 == 0:
            raise ValueError(
                f"a kernel is centered on its state, so odd; received {self.kernel}, use {self.kernel + 1}"
            )
        return self


class DecoderOnly(Generator):
    """DALL-E's transformer. The text loss ignores padding: `cross_entropy(..., ignore_index=text_pad_id)`."""

    config: DecoderOnlyConfig
    learns_text = True

    def __init__(self, config: DecoderOnlyConfig, tokens: TokenSpace) -> None:
        super().__init__()
        if tokens.text_length < 2:
            raise ValueError(
                f"the last text slot is predicted and never read, so text.length is at least 2, received "
                f"{tokens.text_length}; with one slot an image would know nothing of its caption"
            )
        self.config = config
        self.tokens = tokens
        width = config.width
        # One extra row, the start token, which no head predicts.
        self.text_embedding = nn.Embedding(tokens.text_vocab_size + 1, width)
        self.pad_embeddings = nn.Parameter(torch.empty(tokens.text_length - 1, width))
        self.text_positions = nn.Parameter(torch.empty(tokens.text_length, width))
        self.image_embedding = nn.Embedding(tokens.image_vocab_size + 1, width)
        self.row_positions = nn.Parameter(torch.empty(tokens.image_grid[0], width))
        self.column_positions = nn.Parameter(torch.empty(tokens.image_grid[1], width))
        self.kernel = config.kernel
        rotary = None
        if config.options.rotary:
            rotary = RotaryPositions(tokens.image_grid, width // config.heads, tokens.text_length)
        self.blocks: Sequence[Block] = cast(
            Sequence[Block], nn.ModuleList(Block(config, rotary) for _ in range(config.depth))
        )
        # Behind the blocks, of which a depth that is none ends the building (`vqgan.hub.construction`).
        self.layer_kinds: list[MaskKind] = (
            dalle_layer_kinds(config.depth) if config.attention == "sparse" else ["full"] * config.depth
        )
        self.norm = norm(width, config.options.norm)
        self.text_head = nn.Linear(width, tokens.text_vocab_size)
        self.image_head = nn.Linear(width, tokens.image_vocab_size)
        self.dropout = nn.Dropout(config.dropout)
        self._init_weights()

    def forward(self, text_ids: Int64[Tensor, "B T"], codes: Int64[Tensor, "B N"]) -> Logits:
        text_length = self.tokens.text_length
        start = torch.full_like(codes[:, :1], self.start_code)
        positions = (self.row_positions[:, None] + self.column_positions).flatten(0, 1)
        image = self.image_embedding(torch.cat([start, codes[:, :-1]], dim=1)) + positions[: codes.shape[1]]
        x = torch.cat([self._embed_text(text_ids), self.dropout(image)], dim=1)

        for block, kind in zip(self.blocks, self.layer_kinds, strict=True):
            pattern = SparsePattern(kind, self.tokens.image_grid, self.kernel, text_length)
            x = checkpointed(block, self.config.checkpoint_activations)(x, pattern)
        x = self.norm(x.float())
        image, text = fp32_logits(self.image_head, x[:, text_length:]), fp32_logits(self.text_head, x[:, :text_length])
        return Logits(image=image, text=text)

    def encode_text(self, text_ids: Int64[Tensor, "B T"]) -> TextStates:
        x = self._embed_text(text_ids)
        layers = []
        for block in self.blocks:
            x, keys, values = block.prefill(x)
            layers.append((keys, values))
        # Padding is attended to like any other text.
        return TextStates(layers, torch.ones_like(text_ids, dtype=torch.bool))

    def step(self, previous: Int64[Tensor, "B"], position: int | Tensor, state: DecodingState) -> Float[Tensor, "B V"]:
        columns = self.tokens.image_grid[1]
        x = self.image_embedding(previous) + lookup(self.row_positions, position // columns)
        x = x + lookup(self.column_positions, position % columns)
        for block, cache, texts in zip(self.blocks, state.caches, state.texts, strict=True):
            x = block.step(x, texts, cache, position)
        return fp32_logits(self.image_head, self.norm(x.float()))

    def branches(self) -> list[Branch]:
        """Returns every block's residual branches in their order, for gradient scales in fp16."""
        return [branch for block in self.blocks for branch in block.branches()]

    def decode_layers(self) -> list[nn.Module]:
        return list(self.blocks)

    def text_rows(self) -> tuple[str, ...]:
        return ("text_embedding.weight", "text_head.weight", "text_head.bias")

    def code_rows(self) -> tuple[str, ...]:
        return ("image_embedding.weight", "image_head.weight", "image_head.bias")

    def resizers(self) -> dict[str, Resizer]:
        resizers: dict[str, Resizer] = dict.fromkeys(("pad_embeddings", "text_positions"), first_rows)
        return resizers | dict.fromkeys(("row_positions", "column_positions"), line_resizer)

    def repeated_layers(self) -> list[nn.Module]:
        return list(self.blocks)

    def image_head_layer(self) -> nn.Linear:
        return self.image_head

    def _embed_text(self, text_ids: Int64[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        if text_ids.shape[1] != self.tokens.text_length:
            raise ValueError(
                f"this model reads {self.tokens.text_length} text positions, received {text_ids.shape[1]}; "
                "encode the captions with the text tokenizer that was saved with it"
            )
        start = torch.full_like(text_ids[:, :1], self.tokens.text_vocab_size)
        first = self.text_embedding(start)
        is_pad = (text_ids[:, :-1] == self.tokens.text_pad_id)[..., None]
        others = torch.where(is_pad, self.pad_embeddings, self.text_embedding(text_ids[:, :-1]))
        return self.dropout(torch.cat([first, others], dim=1) + self.text_positions)

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=self.config.width**-0.5)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=0.02)
        for table in (self.pad_embeddings, self.text_positions, self.row_positions, self.column_positions):
            nn.init.trunc_normal_(table, std=0.02)
        # A new model is uniform over both vocabularies: cross-entropy starts at ln W and ln V.
        nn.init.zeros_(self.text_head.weight)
        nn.init.zeros_(self.image_head.weight)


class Block(nn.Module):
    """Pre-LN self-attention over text and image, then the feed-forward."""

    def __init__(self, config: DecoderOnlyConfig, rotary: RotaryPositions | None) -> None:
        super().__init__()
        options = config.options
        self.attention_norm = norm(config.width, options.norm)
        self.attention = JointAttention(config.width, config.heads, options.qk_norm, rotary)
        self.mlp_norm = norm(config.width, options.norm)
        self.mlp = feed_forward(config.width, config.mlp_width, options.feed_forward or "gelu")
        self.dropout = nn.Dropout(config.dropout)
        self.attention_ends, self.mlp_ends = BranchEnds(), BranchEnds()

    def forward(self, x: Float[Tensor, "B S D"], pattern: SparsePattern) -> Float[Tensor, "B S D"]:
        attended = self.attention.causal_forward(self.attention_norm(self.attention_ends.enter(x)), pattern)
        return self._mlp_residual(x + self.attention_ends.leave(self.dropout(attended)))

    def prefill(self, x: Float[Tensor, "B T D"]) -> tuple[Float[Tensor, "B T D"], Tensor, Tensor]:
        attended, keys, values = self.attention.prefill(self.attention_norm(x))
        return self._mlp_residual(x + self.dropout(attended)), keys, values

    def step(
        self, x: Float[Tensor, "B D"], texts: Sequence[SharedText], cache: KeyValueCache, position: int | Tensor
    ) -> Float[Tensor, "B D"]:
        return self._mlp_residual(x + self.attention.decode_step(self.attention_norm(x), texts, cache, position))

    def branches(self) -> list[Branch]:
        """Returns both residual branches, for gradient scales."""
        attention = [*self.attention_norm.parameters(), *self.attention.parameters()]
        return [
            Branch(self.attention_ends, attention),
            Branch(self.mlp_ends, [*self.mlp_norm.parameters(), *self.mlp.parameters()]),
        ]

    def _mlp_residual(self, x: Tensor) -> Tensor:
        return x + self.mlp_ends.leave(self.dropout(self.mlp(self.mlp_norm(self.mlp_ends.enter(x)))))
