"""Cost of sampling one image (papers.md D.2 and G)."""

from dataclasses import dataclass

import torch

from parti.layers.kv_cache import CacheLayout
from parti.models import EncoderDecoder, Generator
from parti.planning.flops import code_flops, matrix_weights, prompt_flops
from parti.sampling.generate import SamplingConfig

_BYTES = {"fp32": 4, "bf16": 2, "int8": 1}
_CACHED_BYTES = {"fp32": 4, "bf16": 2, "int8": 4}
"""Bytes of a number in the key-value cache."""


@dataclass(frozen=True)
class SamplingCostTerms:
    """flops: of one image; cache: bytes of its keys and values, image and text; step: bytes that a decoding step
    reads."""

    flops: float
    cache: int
    step: int
    steps: int

    def seconds(self, bandwidth: float) -> float:
        """Returns the least seconds per image at this memory bandwidth: small batches are memory-bound."""
        return self.steps * self.step / bandwidth


def sampling_cost(generator: Generator, settings: SamplingConfig) -> SamplingCostTerms:
    """Returns the cost of one image with these settings; guidance doubles the rows, its empty text is one position."""
    tokens, head = generator.tokens, generator.image_head_layer()
    sides = 1 if settings.guidance_scale == 1.0 else 2
    length = tokens.image_length
    cpu = torch.device("cpu")
    slots = sum(CacheLayout(kind, tokens.image_grid, generator.kernel, cpu).slots for kind in generator.layer_kinds)
    read = sum(map(matrix_weights, generator.decode_layers()))
    if isinstance(generator, EncoderDecoder):  # keys and values of the text are computed once
        read -= sum(matrix_weights(block.cross_attention.key_value) for block in generator.decoder)
    text = (tokens.text_length + sides - 1) * len(generator.layer_kinds)
    cache = (slots * sides + text) * 2 * head.in_features * _CACHED_BYTES[settings.precision]
    return SamplingCostTerms(
        flops=sides * (prompt_flops(generator) + length * code_flops(generator)),
        cache=cache,
        # The head stays fp32; at worst the whole cache is read.
        step=read * _BYTES[settings.precision] + 4 * head.weight.numel() + cache,
        steps=length,
    )
