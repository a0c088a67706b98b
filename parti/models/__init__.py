"""Networks of stage 2; no losses. The table of generators by `kind`."""

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import Field

from parti.models.decoder_only import DecoderOnly, DecoderOnlyConfig
from parti.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from parti.models.generator import Generator, Logits
from parti.models.token_space import TokenSpace

GeneratorConfig = Annotated[EncoderDecoderConfig | DecoderOnlyConfig, Field(discriminator="kind")]

GENERATORS: dict[str, Callable[[Any, TokenSpace], Generator]] = {
    "encoder_decoder": EncoderDecoder,
    "decoder_only": DecoderOnly,
}
"""Every stage-2 model by its config's `kind`."""

__all__ = [
    "GENERATORS",
    "DecoderOnly",
    "DecoderOnlyConfig",
    "EncoderDecoder",
    "EncoderDecoderConfig",
    "Generator",
    "GeneratorConfig",
    "Logits",
    "TokenSpace",
]
