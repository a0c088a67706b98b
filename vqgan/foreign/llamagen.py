"""LlamaGen's image tokenizers VQ-16 and VQ-8 (FoundationVision/LlamaGen; arXiv 2406.06525).

The network of taming-transformers with attention at the lowest resolution only, and 16384 l2-normalized codes of
width 8. Its decoder's levels are in the order of use, from the lowest resolution up, and its middle is a plain list.
"""

from collections.abc import Mapping

from torch import Tensor

from vqgan.foreign.cnn_layout import CNNNames, build_cnn, cnn_config, shape_of
from vqgan.models.autoencoder import Autoencoder
from vqgan.quantizers import NearestConfig

_NAMES = CNNNames(
    project="LlamaGen",
    encoder_levels="encoder.conv_blocks",
    decoder_levels="decoder.conv_blocks",
    decoder_from_full=False,
    blocks="res",
    attentions="attn",
    middle=("0", "1", "2"),
    quantizer={"quantizer.codebook": "quantize.embedding.weight"},
)
_USE_COUNTER = "quantize.codebook_used"
"""Which codes training used lately; it plays no part in the model."""


def from_llamagen(state: Mapping[str, Tensor], image_size: int = 256) -> Autoencoder:
    """The autoencoder of a file's `ema` where it has one, else of its `model`, trained at `image_size` pixels.

    Raises ForeignCheckpointError where tensors are missing, unknown or of another shape.
    """
    tensors = {name: tensor for name, tensor in state.items() if name != _USE_COUNTER}
    codebook_size, code_dim = shape_of(tensors, "quantize.embedding.weight", 2, _NAMES.project)
    quantizer = NearestConfig(codebook_size=codebook_size, code_dim=code_dim, l2_normalize=True)
    return build_cnn(cnn_config(tensors, _NAMES, quantizer, image_size), tensors, _NAMES)
