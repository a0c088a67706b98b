"""What every stage-2 model offers to training and to sampling, however it reads the text.

Legend: B batch, T text positions, N image codes, V image vocabulary, W text vocabulary, H heads, d head width.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from parti.layers.attention import KeyValueCache
from parti.models.token_space import TokenSpace
from vqgan.config import Config


class Logits(NamedTuple):
    """image: fp32 logits of every code given the text and the codes before it. text: of every text token given those
    before it, from models that learn the text too."""

    image: Float[Tensor, "B N V"]
    text: Float[Tensor, "B T W"] | None = None


class Memory(NamedTuple):
    """What image positions know of the text: every layer's keys and values (B, H, T, d), and which positions count."""

    layers: list[tuple[Tensor, Tensor]]
    mask: Bool[Tensor, "B T"]

    def rows(self, index: Int64[Tensor, "R"]) -> "Memory":
        """The text sides of these rows, in this order: a prompt that several pictures share is read once."""
        return Memory([(keys[index], values[index]) for keys, values in self.layers], self.mask[index])


class Generator(nn.Module, ABC):
    """Translates text ids into image codes, one after the other."""

    config: Config
    tokens: TokenSpace

    @abstractmethod
    def forward(self, text_ids: Int64[Tensor, "B T"], codes: Int64[Tensor, "B N"]) -> Logits:
        """All logits at once, for training and likelihoods."""

    @abstractmethod
    def encode_text(self, text_ids: Int64[Tensor, "B T"]) -> Memory:
        """Read the text once. Raises ValueError for another number of text positions than the model was built for."""

    @abstractmethod
    def new_caches(self, batch: int) -> list[KeyValueCache]:
        """One empty cache a layer for the codes of `batch` pictures."""

    @abstractmethod
    def step(
        self, previous: Int64[Tensor, "B"] | None, position: int, memory: Memory, caches: list[KeyValueCache]
    ) -> Float[Tensor, "B V"]:
        """Logits (fp32) of the code at `position`, given the code before it (None at position 0) and the caches."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device
