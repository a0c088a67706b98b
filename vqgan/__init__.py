"""Stage 1: image tokenizers, and the data, training loop and metrics that both stages stand on."""

from pathlib import Path
from typing import TYPE_CHECKING

import vqgan.openmp  # noqa: F401  before anything imports torch: see there
from vqgan.system.names_on_use import names_on_use
from vqgan.system.torchvision_ops import declare_on_import

if TYPE_CHECKING:
    from vqgan.config.schema import load_config as load_config
    from vqgan.evaluation import TokenizerEvaluationConfig as TokenizerEvaluationConfig
    from vqgan.evaluation import measure_tokenizer as evaluate  # noqa: F401
    from vqgan.image_tokenizer import ImageTokenizer as ImageTokenizer
    from vqgan.losses.adversarial import AdversarialLoss as AdversarialLoss
    from vqgan.losses.adversarial import r1_penalty as r1_penalty
    from vqgan.losses.perceptual import PerceptualConfig as PerceptualConfig
    from vqgan.losses.perceptual import PerceptualLoss as PerceptualLoss
    from vqgan.models import build_autoencoder as build_autoencoder
    from vqgan.models.cnn_vqgan import CNNVQGANConfig as CNNVQGANConfig
    from vqgan.models.discriminator import PatchDiscriminator as PatchDiscriminator
    from vqgan.models.discriminator import StyleGAN2Discriminator as StyleGAN2Discriminator
    from vqgan.models.dvae import DVAEConfig as DVAEConfig
    from vqgan.models.vit_vqgan import ViTVQGANConfig as ViTVQGANConfig
    from vqgan.quantizers import FiniteScalarConfig as FiniteScalarConfig
    from vqgan.quantizers import FiniteScalarQuantizer as FiniteScalarQuantizer
    from vqgan.quantizers import GumbelConfig as GumbelConfig
    from vqgan.quantizers import GumbelQuantizer as GumbelQuantizer
    from vqgan.quantizers import LookupFreeConfig as LookupFreeConfig
    from vqgan.quantizers import LookupFreeQuantizer as LookupFreeQuantizer
    from vqgan.quantizers import NearestConfig as NearestConfig
    from vqgan.quantizers import NearestEMAConfig as NearestEMAConfig
    from vqgan.quantizers import NearestEMAQuantizer as NearestEMAQuantizer
    from vqgan.quantizers import NearestQuantizer as NearestQuantizer
    from vqgan.quantizers import ResidualConfig as ResidualConfig
    from vqgan.quantizers import ResidualQuantizer as ResidualQuantizer
    from vqgan.quantizers import build_quantizer as build_quantizer
    from vqgan.train_tokenizer import TrainVQGANConfig as TrainVQGANConfig
    from vqgan.train_tokenizer import train as train

_PLACES = {
    "AdversarialLoss": "vqgan.losses.adversarial:AdversarialLoss",
    "CNNVQGANConfig": "vqgan.models.cnn_vqgan:CNNVQGANConfig",
    "DVAEConfig": "vqgan.models.dvae:DVAEConfig",
    "FiniteScalarConfig": "vqgan.quantizers:FiniteScalarConfig",
    "FiniteScalarQuantizer": "vqgan.quantizers:FiniteScalarQuantizer",
    "GumbelConfig": "vqgan.quantizers:GumbelConfig",
    "GumbelQuantizer": "vqgan.quantizers:GumbelQuantizer",
    "ImageTokenizer": "vqgan.image_tokenizer:ImageTokenizer",
    "LookupFreeConfig": "vqgan.quantizers:LookupFreeConfig",
    "LookupFreeQuantizer": "vqgan.quantizers:LookupFreeQuantizer",
    "NearestConfig": "vqgan.quantizers:NearestConfig",
    "NearestEMAConfig": "vqgan.quantizers:NearestEMAConfig",
    "NearestEMAQuantizer": "vqgan.quantizers:NearestEMAQuantizer",
    "NearestQuantizer": "vqgan.quantizers:NearestQuantizer",
    "PatchDiscriminator": "vqgan.models.discriminator:PatchDiscriminator",
    "PerceptualConfig": "vqgan.losses.perceptual:PerceptualConfig",
    "PerceptualLoss": "vqgan.losses.perceptual:PerceptualLoss",
    "ResidualConfig": "vqgan.quantizers:ResidualConfig",
    "ResidualQuantizer": "vqgan.quantizers:ResidualQuantizer",
    "StyleGAN2Discriminator": "vqgan.models.discriminator:StyleGAN2Discriminator",
    "TokenizerEvaluationConfig": "vqgan.evaluation:TokenizerEvaluationConfig",
    "TrainVQGANConfig": "vqgan.train_tokenizer:TrainVQGANConfig",
    "ViTVQGANConfig": "vqgan.models.vit_vqgan:ViTVQGANConfig",
    "build_autoencoder": "vqgan.models:build_autoencoder",
    "build_quantizer": "vqgan.quantizers:build_quantizer",
    "evaluate": "vqgan.evaluation:measure_tokenizer",
    "load_config": "vqgan.config.schema:load_config",
    "r1_penalty": "vqgan.losses.adversarial:r1_penalty",
    "train": "vqgan.train_tokenizer:train",
}
"""Public name -> where it is; loaded on use, so that importing the package loads nothing heavy."""

declare_on_import()

__all__ = [*_PLACES, "load_tokenizer"]
__getattr__, __dir__ = names_on_use(__name__, _PLACES, __all__)


def load_tokenizer(folder: str | Path) -> "ImageTokenizer":
    """Returns the image tokenizer of a model folder, run folder or Hub name, trained here or imported from another
    project.

    Raises ModelFolderError when there is none.
    """
    from vqgan.image_tokenizer import ImageTokenizer

    return ImageTokenizer.from_pretrained(folder)
