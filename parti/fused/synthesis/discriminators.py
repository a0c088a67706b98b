"""All discriminators as one network: a caption encoder and one discriminator for each scale.

papers.md E.5 takes the sentence from row 11 of the generator. Departure: by then the fusions have mixed the image, and
its noise, into the text, so a discriminator could recognize a generated image by its sentence. So the discriminators
encode captions with BertLayers of their own (as many as the generator's first three rows), which train with them and
may start from the same BERT. A sentence is the mean over a caption's tokens: a learned vocabulary has no [CLS].

Legend: B images, T text positions, D text width, S sentence width.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor, nn

from parti.fused.synthesis.scale_discriminator import ScaleDiscriminator, ScaleDiscriminatorConfig
from parti.fused.text_side import TextEmbeddings, TextLayer, TextSideConfig, TextSpace, start_from_bert
from vqgan.config.schema import Config

_FIRST_SCALE, _LARGEST_SCALE = 10.0, 100.0
"""Initial and largest factor of the cosine similarities of captions and images; CLIP has 14 and 100."""


class DiscriminatorsConfig(Config, fixed=("sentence_layers",)):
    """Caption encoder and discriminators."""

    scale: ScaleDiscriminatorConfig = ScaleDiscriminatorConfig()
    """The discriminator of each scale."""
    sentence_layers: int = Field(3, gt=0)
    """BertLayers of the caption encoder, with the sizes of the generator's text side."""


class DiscriminatorOutput(NamedTuple):
    """Output of one discriminator: logits (B,) and image embeddings as unit vectors (B, S).

    `wrong` are conditional logits with the caption of the previous image. It and `embedding` are None unless requested.
    """

    unconditional: Tensor
    conditional: Tensor
    wrong: Tensor | None
    embedding: Tensor | None


class DiscriminatorOutputs(NamedTuple):
    """Outputs of every scale, and the sentences (B, S) as unit vectors."""

    scales: list[DiscriminatorOutput]
    sentence: Tensor


class Discriminators(nn.Module):
    """Caption encoder and discriminators; with `matching` they also embed images in the space of the sentences.

    Raises ConfigError if the BERT of the caption encoder cannot be loaded or does not fit.
    """

    def __init__(
        self,
        config: DiscriminatorsConfig,
        text: TextSideConfig,
        tokens: TextSpace,
        sides: Sequence[int],
        matching: bool,
    ) -> None:
        super().__init__()
        self.reader = SentenceReader(text, tokens, config.sentence_layers, config.scale.sentence_width)
        scales = [ScaleDiscriminator(config.scale, side) for side in sides]
        self.scales = nn.ModuleList(scales)
        # Built only if used: data-parallel training needs every weight in the loss.
        self.embed: nn.ModuleList | None = None
        if matching:
            width = config.scale.sentence_width
            self.embed = nn.ModuleList(nn.Linear(scale.feature_count, width) for scale in scales)
            self.log_scale = nn.Parameter(torch.tensor(math.log(_FIRST_SCALE)))

    def forward(
        self, image_list: Sequence[Tensor], ids: Int64[Tensor, "B T"], wrong: bool = False
    ) -> DiscriminatorOutputs:
        """Computes logits in fp32 for images (B, 3, side, side) in [-1, 1] at every scale, and their captions."""
        sentence = self.reader(ids)
        outputs = []
        for number, (network, images) in enumerate(zip(self.networks, image_list, strict=True)):
            features = network(images)
            embedding = None if self.embed is None else self.embed[number](features.flatten(1)).float()
            outputs.append(
                DiscriminatorOutput(
                    network.unconditional(features).float(),
                    network.conditional(features, sentence).float(),
                    network.conditional(features, sentence.roll(1, 0)).float() if wrong else None,
                    None if embedding is None else F.normalize(embedding, dim=-1),
                )
            )
        return DiscriminatorOutputs(outputs, F.normalize(sentence.float(), dim=-1))

    @property
    def networks(self) -> list[ScaleDiscriminator]:
        """One discriminator for each scale, from the smallest to the largest."""
        return cast(list[ScaleDiscriminator], list(self.scales))

    def matching_scale(self) -> Float[Tensor, ""]:
        """Returns the factor of the cosine similarities."""
        return self.log_scale.exp()

    @torch.no_grad()
    def limit_matching_scale(self) -> None:
        """Clamps the factor to CLIP's 100, above which its training was unstable."""
        if self.embed is not None:
            self.log_scale.clamp_(max=math.log(_LARGEST_SCALE))


class SentenceReader(nn.Module):
    """Encodes ids to one vector for each caption."""

    def __init__(self, text: TextSideConfig, tokens: TextSpace, layers: int, sentence_width: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.embeddings = TextEmbeddings(text, tokens)
        self.layers = nn.ModuleList(TextLayer(text) for _ in range(layers))
        self.project = nn.Linear(text.width, sentence_width)
        start_from_bert(self.embeddings, cast(list[TextLayer], list(self.layers)), text, tokens)

    def forward(self, ids: Int64[Tensor, "B T"]) -> Float[Tensor, "B S"]:
        mask = self.tokens.seen(ids)
        states = self.embeddings(ids)
        for layer in self.layers:
            states = layer(states, mask)
        counts = mask.sum(1, keepdim=True).clamp(min=1)
        return self.project((states * mask[..., None]).sum(1) / counts)
