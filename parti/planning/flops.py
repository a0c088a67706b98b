"""Arithmetic of stage 2 by formula (papers.md D.2): two operations for a multiplication with its sum.

What a model's mathematics needs, whatever the kernels do: a convolutional mask counts the codes that it reads, though
dense attention computes scores of all. That is what a share of a GPU's peak ("MFU") is a share of.

d: width; L: layers; N: image codes; T: text positions; V: image vocabulary; W: text vocabulary; n: keys a code reads.
"""

from torch import nn

from parti.layers.sparse_masks import MaskKind, image_mask
from parti.models import DecoderOnly, EncoderDecoder, Generator
from parti.text.encoders import TrainedTextEncoder


def training_flops(generator: Generator) -> float:
    """Of one pair, forward and backward: three times forward."""
    return 3 * forward_flops(generator)


def forward_flops(generator: Generator) -> float:
    """Of one pair: the prompt, and every code."""
    return prompt_flops(generator) + code_flops(generator) * generator.tokens.image_length


def prompt_flops(generator: Generator) -> float:
    """Of one prompt before the first code: the text side, and what image states read of it."""
    length = generator.tokens.text_length
    if isinstance(generator, EncoderDecoder):
        encoder, width = generator.text_encoder, generator.config.width
        own = 2 * matrix_weights(encoder) * length
        if isinstance(encoder, TrainedTextEncoder):
            own += 4 * length**2 * width * len(encoder.blocks)
        keys_and_values = sum(
            2 * matrix_weights(block.cross_attention.key_value) * length for block in generator.decoder
        )
        return float(own + keys_and_values)
    if isinstance(generator, DecoderOnly):
        width, depth = generator.config.width, generator.config.depth
        in_blocks = 2 * sum(map(matrix_weights, generator.blocks)) * length
        return float(
            in_blocks + 4 * width * depth * length * (length + 1) / 2 + 2 * matrix_weights(generator.text_head) * length
        )
    raise TypeError(f"no formula for a {type(generator).__name__}")


def code_flops(generator: Generator) -> float:
    """Of one code, on average over those of an image."""
    tokens, head = generator.tokens, 2 * matrix_weights(generator.image_head_layer())
    width = generator.image_head_layer().in_features
    keys = {kind: mean_keys(kind, tokens.image_grid, generator.kernel) for kind in set(generator.layer_kinds)}
    attention = sum(4 * width * (keys[kind] + tokens.text_length) for kind in generator.layer_kinds)
    in_blocks = 2 * sum(map(matrix_weights, generator.decode_layers()))
    if isinstance(generator, EncoderDecoder):  # keys and values of the text are the prompt's
        in_blocks -= sum(2 * matrix_weights(block.cross_attention.key_value) for block in generator.decoder)
    return in_blocks + head + attention


def mean_keys(kind: MaskKind, grid: tuple[int, int], kernel: int) -> float:
    """Image states, itself included, that a state reads on average."""
    return image_mask(kind, grid, kernel).sum().item() / (grid[0] * grid[1])


def matrix_weights(module: nn.Module) -> int:
    """Weights that each position is multiplied with."""
    return sum(layer.weight.numel() for layer in module.modules() if isinstance(layer, nn.Linear))
