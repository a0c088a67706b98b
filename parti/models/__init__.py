"""Networks of stage 2; no losses. The table of generators by `kind`."""

from parti.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from parti.models.token_space import TokenSpace

GeneratorConfig = EncoderDecoderConfig

GENERATORS: dict[str, type[EncoderDecoder]] = {"encoder_decoder": EncoderDecoder}
"""Every stage-2 model by its config's `kind`."""

__all__ = ["GENERATORS", "EncoderDecoder", "EncoderDecoderConfig", "GeneratorConfig", "TokenSpace"]
