"""Quantizers: latents to codes and back, one per file; a new one goes into the tables below by its `kind`."""

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import Field

from vqgan.quantizers.finite_scalar import FiniteScalarConfig, FiniteScalarQuantizer
from vqgan.quantizers.gumbel import AnnealingConfig, GumbelConfig, GumbelQuantizer
from vqgan.quantizers.lookup_free import LookupFreeConfig, LookupFreeQuantizer
from vqgan.quantizers.nearest import NearestConfig, NearestQuantizer
from vqgan.quantizers.nearest_ema import NearestEMAConfig, NearestEMAQuantizer
from vqgan.quantizers.quantizer import LookUp, Quantized, Quantizer
from vqgan.quantizers.residual import ResidualConfig, ResidualQuantizer

QuantizerConfig = Annotated[
    NearestConfig | NearestEMAConfig | GumbelConfig | FiniteScalarConfig | LookupFreeConfig | ResidualConfig,
    Field(discriminator="kind"),
]

QUANTIZERS: dict[str, Callable[[Any], Quantizer]] = {
    "nearest": NearestQuantizer,
    "nearest_ema": NearestEMAQuantizer,
    "gumbel": GumbelQuantizer,
    "finite_scalar": FiniteScalarQuantizer,
    "lookup_free": LookupFreeQuantizer,
    "residual": ResidualQuantizer,
}
"""Every quantizer by its config's `kind`."""


def build_quantizer(config: QuantizerConfig) -> Quantizer:
    """Returns the quantizer of a config."""
    return QUANTIZERS[config.kind](config)


__all__ = [
    "QUANTIZERS",
    "AnnealingConfig",
    "FiniteScalarConfig",
    "FiniteScalarQuantizer",
    "GumbelConfig",
    "GumbelQuantizer",
    "LookUp",
    "LookupFreeConfig",
    "LookupFreeQuantizer",
    "NearestConfig",
    "NearestEMAConfig",
    "NearestEMAQuantizer",
    "NearestQuantizer",
    "Quantized",
    "Quantizer",
    "QuantizerConfig",
    "ResidualConfig",
    "ResidualQuantizer",
    "build_quantizer",
]
