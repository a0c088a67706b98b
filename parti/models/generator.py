"""What every stage-2 model offers to training and to sampling, however it reads the text.

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
    """image: fp32 logits of every code given the text and the codes before it. text: of every text token given those
    before it, from models that learn the text too."""

    image: Float[Tensor, "B N V"]
    text: Float[Tensor, "B T W"] | None = None


class TextStates(NamedTuple):
    """What image positions know of the text: every layer's keys and values (B, H, T, d), and which positions count."""

    layers: list[tuple[Tensor, Tensor]]
    mask: Bool[Tensor, "B T"]

    @staticmethod
    def joined(memories: Sequence["TextStates"]) -> "TextStates":
        """One after the other; all have as many text positions."""
        layers = [(torch.cat(keys), torch.cat(values)) for keys, values in _by_layer(memories)]
        return TextStates(layers, torch.cat([memory.mask for memory in memories]))

    def rows(self, index: Int64[Tensor, "R"]) -> "TextStates":
        """The text sides of these rows, in this order."""
        return TextStates([(keys[index], values[index]) for keys, values in self.layers], self.mask[index])

    def without_padding(self) -> "TextStates":
        """Without the positions at the end that count in no row."""
        length = int(self.mask.any(0).nonzero().max()) + 1
        layers = [(keys[:, :, :length], values[:, :, :length]) for keys, values in self.layers]
        return TextStates(layers, self.mask[:, :length])


class PromptGroup(NamedTuple):
    """Texts of which each is drawn `images` times, in rows that stand next to each other."""

    memory: TextStates
    images: int = 1


class DecodingState(NamedTuple):
    """What the steps of drawing carry from one to the next: every layer's cache, and the text as it reads it."""

    caches: list[KeyValueCache]
    texts: list[list[SharedText]]


class Generator(nn.Module, ABC):
    """Translates text ids into image codes, one after the other."""

    config: Config
    tokens: TokenSpace
    layer_kinds: list[MaskKind]
    """Which image states the image states of each layer read."""
    kernel: int
    """Odd side of convolutional masks, in codes."""
    learns_text: ClassVar[bool] = False
    """Whether its logits are of the text too."""

    @abstractmethod
    def forward(self, text_ids: Int64[Tensor, "B T"], codes: Int64[Tensor, "B N"]) -> Logits:
        """All logits at once, for training and likelihoods."""

    @abstractmethod
    def encode_text(self, text_ids: Int64[Tensor, "B T"]) -> TextStates:
        """Read the text once. Raises ValueError for another number of text positions than the model was built for."""

    @abstractmethod
    def step(self, previous: Int64[Tensor, "B"], position: int | Tensor, state: DecodingState) -> Float[Tensor, "B V"]:
        """Logits (fp32) of the code at `position`, given the code before it (`start_code` at position 0) and what the
        steps before left in `state`. As a tensor () `position` makes every step one of the same shapes. No dropout."""

    @abstractmethod
    def decode_layers(self) -> list[nn.Module]:
        """The modules whose weights each step reads, but for the head."""

    @abstractmethod
    def repeated_layers(self) -> list[nn.Module]:
        """The layers of all stacks, as the forward pass meets them, each called as a module: the units that are
        compiled, or divided between processes, one by one."""

    @abstractmethod
    def image_head_layer(self) -> nn.Linear:
        """The layer that gives the logits of codes."""

    def branches(self) -> list[Branch]:
        """Residual branches whose gradients can be scaled one by one, for training in fp16; none where it cannot."""
        return []

    def start(self, prompts: Sequence[PromptGroup]) -> DecodingState:
        """Empty caches, and the texts laid out for the steps of drawing; the rows of `prompts` follow each other."""
        prompts = [PromptGroup(prompt.memory.without_padding(), prompt.images) for prompt in prompts]
        if len({(prompt.images, prompt.memory.mask.shape[1]) for prompt in prompts}) == 1:
            # Sides of one shape are one side: half as many calls.
            prompts = [PromptGroup(TextStates.joined([prompt.memory for prompt in prompts]), prompts[0].images)]
        batch = sum(len(prompt.memory.mask) * prompt.images for prompt in prompts)
        like = prompts[0].memory.layers[0][0]
        layouts = {
            kind: CacheLayout(kind, self.tokens.image_grid, self.kernel, like.device) for kind in set(self.layer_kinds)
        }
        caches = [KeyValueCache(layouts[kind], batch, like.shape[1], like) for kind in self.layer_kinds]
        texts: list[list[SharedText]] = [[] for _ in self.layer_kinds]
        for memory, images in prompts:
            # Where all of it counts nothing is added: the kernels without a mask are faster.
            bias = None if memory.mask.all() else additive(memory.mask)[:, None, None].to(like.dtype)
            for layer, (keys, values) in zip(texts, memory.layers, strict=True):
                layer.append(SharedText(keys.contiguous(), values.contiguous(), bias, images))
        return DecodingState(caches, texts)

    @property
    def start_code(self) -> int:
        """What stands before the first code; no head gives it."""
        return self.tokens.image_vocab_size

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device


def _by_layer(memories: Sequence[TextStates]) -> Iterator[tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]:
    """Of each layer the keys of all memories, and the values."""
    for layers in zip(*(memory.layers for memory in memories), strict=True):
        keys, values = zip(*layers, strict=True)
        yield keys, values
