"""Stage 2: from text to image tokens, and from there to images."""

from typing import TYPE_CHECKING

import vqgan.openmp  # noqa: F401  before anything imports torch: see there
from vqgan.system.names_on_use import names_on_use

if TYPE_CHECKING:
    from parti.evaluation.generator import GeneratorEvaluationConfig as GeneratorEvaluationConfig
    from parti.evaluation.generator import measure_generator as evaluate  # noqa: F401
    from parti.models import DecoderOnly as DecoderOnly
    from parti.models import DecoderOnlyConfig as DecoderOnlyConfig
    from parti.models import EncoderDecoder as EncoderDecoder
    from parti.models import EncoderDecoderConfig as EncoderDecoderConfig
    from parti.models import TokenSpace as TokenSpace
    from parti.next_token.train_next_token import TrainPartiConfig as TrainPartiConfig
    from parti.objectives import train as train
    from parti.pipeline import TextToImage as TextToImage
    from parti.reranker.scorer import Scorer as Scorer
    from parti.sampling.generate import SamplingConfig as SamplingConfig
    from parti.text import TextTokenizer as TextTokenizer
    from parti.text import TextTokenizerConfig as TextTokenizerConfig
    from parti.upsampler.upsampler import Upsampler as Upsampler

_PLACES = {
    "DecoderOnly": "parti.models:DecoderOnly",
    "DecoderOnlyConfig": "parti.models:DecoderOnlyConfig",
    "EncoderDecoder": "parti.models:EncoderDecoder",
    "EncoderDecoderConfig": "parti.models:EncoderDecoderConfig",
    "GeneratorEvaluationConfig": "parti.evaluation.generator:GeneratorEvaluationConfig",
    "SamplingConfig": "parti.sampling.generate:SamplingConfig",
    "Scorer": "parti.reranker.scorer:Scorer",
    "TextToImage": "parti.pipeline:TextToImage",
    "TextTokenizer": "parti.text:TextTokenizer",
    "TextTokenizerConfig": "parti.text:TextTokenizerConfig",
    "TokenSpace": "parti.models:TokenSpace",
    "TrainPartiConfig": "parti.next_token.train_next_token:TrainPartiConfig",
    "Upsampler": "parti.upsampler.upsampler:Upsampler",
    "evaluate": "parti.evaluation.generator:measure_generator",
    "train": "parti.objectives:train",
}
"""Public name -> where it is; loaded on use, so that importing the package loads nothing heavy."""

__all__ = [*_PLACES]
__getattr__, __dir__ = names_on_use(__name__, _PLACES, __all__)
