"""FLOPs of stage 2 by formula (papers.md D.2): two operations for each multiply-add.

Model FLOPs, independent of kernels: a convolutional mask counts only the codes that it reads, although dense attention
computes all scores. Model FLOPs utilization (MFU) refers to these.

d: width; L: layers; N: image codes; T: text positions; V: image vocabulary; W: text vocabulary; n: keys a code reads.
"""

from torch import nn

from parti.layers.sparse_masks import MaskKind, image_mask
from parti.models import DecoderOnly, EncoderDecoder, Generator
from parti.text.encoders import TrainedTextEncoder


def training_flops(generator: Generator) -> float:
    """Returns the FLOPs of one pair, forward and backward: three times forward."""
    return 3 * forward_flops(generator)


def forward_flops(generator: Generator) -> float:
    """Returns the forward FLOPs of one pair: the prompt, and every code."""
    return prompt_flops(generator) + code_flops(generator) * generator.tokens.image_length


def prompt_flops(generator: Generator) -> float:
    """Returns the FLOPs of one prompt before the first code: text side, and its keys and values."""
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
    """Returns the FLOPs of one code, averaged over those of an image."""
    tokens, head = generator.tokens, 2 * matrix_weights(generator.image_head_layer())
    width = generator.image_head_layer().in_features
    keys = {kind: mean_keys(kind, tokens.image_grid, generator.kernel) for kind in set(generator.layer_kinds)}
    attention = sum(4 * width * (keys[kind] + tokens.text_length) for kind in generator.layer_kinds)
    in_blocks = 2 * sum(map(matrix_weights, generator.decode_layers()))
    if isinstance(generator, EncoderDecoder):  # keys and values of the text count for the prompt
        in_blocks -= sum(2 * matrix_weights(block.cross_attention.key_value) for block in generator.decoder)
    return in_blocks + head + attention


def mean_keys(kind: MaskKind, grid: tuple[int, int], kernel: int) -> float:
    """Returns the mean number of image states, itself included, that a state attends to."""
    return image_mask(kind, grid, kernel).sum().item() / (grid[0] * grid[1])


def matrix_weights(module: nn.Module) -> int:
    """Returns the number of the number of the number of weights that each position is multiplied with."""
    return sum(layer.weight.numel() for layer in module.modules() if isinstance(layer, nn.Linear))
