"""From latents to codes and back; one idea a file, one return type for all."""

from vqgan.quantizers.nearest import NearestConfig, NearestQuantizer
from vqgan.quantizers.quantized import Quantized

__all__ = ["NearestConfig", "NearestQuantizer", "Quantized"]
