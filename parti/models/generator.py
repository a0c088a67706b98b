"""Base class of the stage-2 models: the interface of training and sampling.

Legend: B batch, T text positions, N image codes, V image vocabulary, W text vocabulary, H heads, d head width.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from parti.layers.gradient_scales import Branch
from parti.layers.kv_cache import CacheLayout, KeyValueCache, additive
from parti.layers.shared_text import SharedText
from parti.layers.sparse_masks import MaskKind
from parti.models.token_space import TokenSpace
from vqgan.config.schema import Config


class Logits(NamedTuple):
    """image: fp32 logits of every code given the text and the previous codes. text: those of every text token given
    the previous ones, from models that predict text too."""

    image: Float[Tensor, "B N V"]
    text: Float[Tensor, "B T W"] | None = None


class TextStates(NamedTuple):
    """The encoded text for image positions: every layer's keys and values (B, H, T, d), and the mask of the
    positions."""

    layers: list[tuple[Tensor, Tensor]]
    mask: Bool[Tensor, "B T"]

    @staticmethod
    def joined(memories: Sequence["TextStates"]) -> "TextStates":
        """Concatenates batches with the same number of text positions."""
        layers = [(torch.cat(keys), torch.cat(values)) for keys, values in _by_layer(memories)]
        return TextStates(layers, torch.cat([memory.mask for memory in memories]))

    def rows(self, index: Int64[Tensor, "R"]) -> "TextStates":
        """Selects rows, in this order."""
        return TextStates([(keys[index], values[index]) for keys, values in self.layers], self.mask[index])

    def without_padding(self) -> "TextStates":
        """Trims trailing positions that are masked in every row."""
        length = int(self.mask.any(0).nonzero().max()) + 1
        layers = [(keys[:, :, :length], values[:, :, :length]) for keys, values in self.layers]
        return TextStates(layers, self.mask[:, :length])


class PromptGroup(NamedTuple):
    """Texts that are each sampled `images` times, in adjacent rows."""

    memory: TextStates
    images: int = 1


class DecodingState(NamedTuple):
    """State of the decoding steps: every layer's cache, and the text in the form that each layer reads."""

    caches: list[KeyValueCache]
    texts: list[list[SharedText]]


class Generator(nn.Module, ABC):
    """Autoregressive model of image codes given text ids."""

    config: Config
    tokens: TokenSpace
    layer_kinds: list[MaskKind]
    """The mask of each layer among the image states."""
    kernel: int
    """Odd side of convolutional masks, in codes."""
    learns_text: ClassVar[bool] = False
    """Whether its logits are of the text too."""

    @abstractmethod
    def forward(self, text_ids: Int64[Tensor, "B T"], codes: Int64[Tensor, "B N"]) -> Logits:
        """Computes all logits in parallel, for training and likelihoods."""

    @abstractmethod
    def encode_text(self, text_ids: Int64[Tensor, "B T"]) -> TextStates:
        """Encodes the text, once per prompt. Raises ValueError for another number of text positions than the
        model's."""

    @abstractmethod
    def step(self, previous: Int64[Tensor, "B"], position: int | Tensor, state: DecodingState) -> Float[Tensor, "B V"]:
        """Computes one decoding step: logits (fp32) of the code at `position`, given the previous code (`start_code` at
        position 0) and the `state` of earlier steps. A tensor () `position` gives every step the same shapes. No
        dropout."""

    @abstractmethod
    def decode_layers(self) -> list[nn.Module]:
        """Returns the modules whose weights each decoding step reads, without the head."""

    @abstractmethod
    def repeated_layers(self) -> list[nn.Module]:
        """Returns the layers of all stacks in forward order, each called as a module: the units of compilation and of
        sharding."""

    @abstractmethod
    def image_head_layer(self) -> nn.Linear:
        """Returns the layer that gives the logits of codes."""

    @abstractmethod
    def text_rows(self) -> tuple[str, ...]:
        """Names of the tensors whose rows are the text vocabulary's: they are mapped where training starts from a model
        with another one. None where a pretrained encoder reads the text."""

    @abstractmethod
    def code_rows(self) -> tuple[str, ...]:
        """Names of the tensors whose rows are image codes: they mean nothing where another tokenizer made the codes."""

    def branches(self) -> list[Branch]:
        """Returns the residual branches for gradient scales in fp16; empty if the model has none."""
        return []

    def start(self, prompts: Sequence[PromptGroup]) -> DecodingState:
        """Returns empty caches and the texts in the layout of the decoding steps; the rows of `prompts` are
        concatenated."""
        prompts = [PromptGroup(prompt.memory.without_padding(), prompt.images) for prompt in prompts]
        if len({(prompt.images, prompt.memory.mask.shape[1]) for prompt in prompts}) == 1:
            # Both sides of guidance in one call if their shapes agree.
            prompts = [PromptGroup(TextStates.joined([prompt.memory for prompt in prompts]), prompts[0].images)]
        batch = sum(len(prompt.memory.mask) * prompt.images for prompt in prompts)
        like = prompts[0].memory.layers[0][0]
        layouts = {
            kind: CacheLayout(kind, self.tokens.image_grid, self.kernel, like.device) for kind in set(self.layer_kinds)
        }
        caches = [KeyValueCache(layouts[kind], batch, like.shape[1], like) for kind in self.layer_kinds]
        texts: list[list[SharedText]] = [[] for _ in self.layer_kinds]
        for memory, images in prompts:
            # No mask if no position is masked: the kernels without a mask are faster.
            bias = None if memory.mask.all() else additive(memory.mask)[:, None, None].to(like.dtype)
            for layer, (keys, values) in zip(texts, memory.layers, strict=True):
                layer.append(SharedText(keys.contiguous(), values.contiguous(), bias, images))
        return DecodingState(caches, texts)

    @property
    def start_code(self) -> int:
        """The start token before the first code; the head never predicts it."""
        return self.tokens.image_vocab_size

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device


def _by_layer(memories: Sequence[TextStates]) -> Iterator[tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]:
    """Returns each layer's keys and values of all texts."""
    for layers in zip(*(memory.layers for memory in memories), strict=True):
        keys, values = zip(*layers, strict=True)
        yield keys, values
