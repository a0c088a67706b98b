"""Networks of stage 1; no losses. The table of autoencoders by `kind`."""

from vqgan.models.autoencoder import Autoencoder, AutoencoderOutput, Decoded
from vqgan.models.vit_vqgan import ViTVQGAN, ViTVQGANConfig

AutoencoderConfig = ViTVQGANConfig

AUTOENCODERS: dict[str, type[ViTVQGAN]] = {"vit_vqgan": ViTVQGAN}
"""Every stage-1 autoencoder by its config's `kind`."""

__all__ = ["AUTOENCODERS", "Autoencoder", "AutoencoderConfig", "AutoencoderOutput", "Decoded"]
