"""The discriminators' side as one network: a reader of captions and one discriminator a scale.

papers.md E.5 takes the sentence from row 11 of the generator. Departure: by then the fusions have put the image, and
its noise, into the text; a discriminator would find its image in its sentence and know it for drawn. So this side reads
captions by BertLayers of its own (the generator's first three rows are as many), which learn with it, and may start
from the same BERT. A sentence is the mean over a caption's tokens: a learned vocabulary has no [CLS].

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
"""Of the cosines that captions and images are matched by; CLIP has 14 and 100."""


class DiscriminatorsConfig(Config, fixed=("sentence_layers",)):
    """Reader and discriminators."""

    scale: ScaleDiscriminatorConfig = ScaleDiscriminatorConfig()
    """Each of the three discriminators."""
    sentence_layers: int = Field(3, gt=0)
    """BertLayers that read the caption, of the generator's text sizes."""


class DiscriminatorOutput(NamedTuple):
    """What a discriminator says of its images: logits (B,), and where they lie beside sentences, unit vectors (B, S).

    `wrong` are conditional logits with the caption of the image before. It and `embedding` are None where nobody
    asked.
    """

    unconditional: Tensor
    conditional: Tensor
    wrong: Tensor | None
    embedding: Tensor | None


class DiscriminatorOutputs(NamedTuple):
    """Of every scale, and the sentences (B, S) as unit vectors."""

    scales: list[DiscriminatorOutput]
    sentence: Tensor


class Discriminators(nn.Module):
    """`matching`: whether images also get a place among the sentences.

    Raises ConfigError where the reader is to start from a BERT that cannot be had or does not fit.
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
        # Where nobody asks there is nothing: data-parallel training wants every weight in the loss.
        self.embed: nn.ModuleList | None = None
        if matching:
            width = config.scale.sentence_width
            self.embed = nn.ModuleList(nn.Linear(scale.feature_count, width) for scale in scales)
            self.log_scale = nn.Parameter(torch.tensor(math.log(_FIRST_SCALE)))

    def forward(
        self, image_list: Sequence[Tensor], ids: Int64[Tensor, "B T"], wrong: bool = False
    ) -> DiscriminatorOutputs:
        """Of images (B, 3, side, side) in [-1, 1] at every scale, and their captions; logits in fp32."""
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
        """One a scale, from the smallest to the largest."""
        return cast(list[ScaleDiscriminator], list(self.scales))

    def matching_scale(self) -> Float[Tensor, ""]:
        """What the cosines are multiplied by."""
        return self.log_scale.exp()

    @torch.no_grad()
    def limit_matching_scale(self) -> None:
        """To CLIP's 100: more made its training unstable."""
        if self.embed is not None:
            self.log_scale.clamp_(max=math.log(_LARGEST_SCALE))


class SentenceReader(nn.Module):
    """Ids to one vector a caption."""

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
