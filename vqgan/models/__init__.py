"""Networks of stage 1; no losses. The table of autoencoders by `kind`."""

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import Field

from vqgan.models.autoencoder import Autoencoder, AutoencoderConfig, AutoencoderOutput, Decoded
from vqgan.models.cnn_vqgan import CNNVQGAN, CNNVQGANConfig
from vqgan.models.dvae import DVAE, DVAEConfig
from vqgan.models.enhancing_vit import EnhancingViTVQGAN, EnhancingViTVQGANConfig
from vqgan.models.vit_vqgan import ViTVQGAN, ViTVQGANConfig

AnyAutoencoderConfig = Annotated[
    ViTVQGANConfig | CNNVQGANConfig | DVAEConfig | EnhancingViTVQGANConfig, Field(discriminator="kind")
]

AUTOENCODERS: dict[str, Callable[[Any], Autoencoder]] = {
    "vit_vqgan": ViTVQGAN,
    "cnn_vqgan": CNNVQGAN,
    "dvae": DVAE,
    "enhancing_vit_vqgan": EnhancingViTVQGAN,
}
"""Every stage-1 autoencoder by its config's `kind`."""


def build_autoencoder(config: AutoencoderConfig) -> Autoencoder:
    """Returns the networks of a config, with fresh weights."""
    return AUTOENCODERS[config.kind](config)


__all__ = [
    "AUTOENCODERS",
    "AnyAutoencoderConfig",
    "Autoencoder",
    "AutoencoderConfig",
    "AutoencoderOutput",
    "Decoded",
    "build_autoencoder",
]
