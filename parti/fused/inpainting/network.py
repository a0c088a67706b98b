"""The network of the pretraining task: the trunk with an image output, and a head that predicts masked words.

Legend: B batch, H W pixels, T text positions, M chosen tokens, V vocabulary, D text width.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from parti.fused.rows import LAST_ROW, TrunkConfig
from parti.fused.text_side import TextSpace
from parti.fused.trunk import Trunk


class InpaintingOutput(NamedTuple):
    """Completed images in (-1, 1), and logits (fp32) of the chosen tokens, row by row."""

    images: Float[Tensor, "B 3 H W"]
    logits: Float[Tensor, "M V"]


class InpaintingNetwork(nn.Module):
    """Restores images with holes and captions with masked words."""

    def __init__(self, config: TrunkConfig, tokens: TextSpace) -> None:
        super().__init__()
        self.trunk = Trunk(config, tokens)
        self.head = WordHead(config.text.width, tokens.vocab_size)

    def forward(
        self, images: Float[Tensor, "B 3 H W"], ids: Int64[Tensor, "B T"], chosen: Bool[Tensor, "B T"]
    ) -> InpaintingOutput:
        """Returns images, and logits at the `chosen` positions."""
        generated, states = self.trunk(images, ids)
        # fp32: the loss exponentiates logits, and bf16 rounds an image to steps of up to one of its 256 levels.
        with torch.autocast(images.device.type, enabled=False):
            logits = self.head(states[chosen].float(), self.trunk.parts.embeddings.weight)
            return InpaintingOutput(torch.tanh(generated.float()), logits)

    def repeated_layers(self) -> list[nn.Module]:
        """Returns the layers of the trunk's rows."""
        return self.trunk.parts.repeated_layers()

    @property
    def last_layer(self) -> nn.Parameter:
        """Last layer of the image side, where an adaptive adversarial weight compares gradients."""
        weight, _ = self.trunk.parts.image[str(LAST_ROW)].parameters()
        return weight


class WordHead(nn.Module):
    """BERT's masked-language-model head: one more layer, then a projection tied to the word embeddings."""

    def __init__(self, width: int, vocab_size: int) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(self, states: Float[Tensor, "M D"], embeddings: Float[Tensor, "V D"]) -> Float[Tensor, "M V"]:
        return F.linear(self.layer(states), embeddings, self.bias)


def composite(
    generated: Float[Tensor, "B 3 H W"], images: Float[Tensor, "B 3 H W"], holes: Bool[Tensor, "B 1 H W"]
) -> Float[Tensor, "B 3 H W"]:
    """Returns `generated` in the holes and `images` everywhere else."""
    return torch.where(holes, generated, images)
