"""The weights of OpenAI's discrete VAE (openai/DALL-E; arXiv 2102.12092, appendix A) in our `DVAE`.

Its two files, encoder.pkl and decoder.pkl, name their tensors alike: `blocks.input`, `blocks.group_1` to `group_4` of
`block_1`, ..., each with `id_path` and `res_path.conv_1` to `conv_4`, and `blocks.output.conv`; `w` is a weight, `b` a
bias. The encoder's last and the decoder's first convolution, 1x1 and as wide as there are codes, are our quantizer's
projection and codebook.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from vqgan.foreign.loading import load_renamed
from vqgan.foreign.reading import ForeignCheckpointError
from vqgan.models.autoencoder import Autoencoder
from vqgan.models.dvae import DVAE, DVAEConfig
from vqgan.quantizers import GumbelConfig

_BLOCK = re.compile(r"(encoder|decoder)\.groups\.(\d+)\.(\d+)\.(?:shortcut|branch\.(\d+))\.(weight|bias)")
_ENDS = {
    "encoder.input.weight": "encoder.blocks.input.w",
    "encoder.input.bias": "encoder.blocks.input.b",
    "quantizer.proj.weight": "encoder.blocks.output.conv.w",
    "quantizer.proj.bias": "encoder.blocks.output.conv.b",
    "quantizer.codebook": "decoder.blocks.input.w",
    "decoder.input_bias": "decoder.blocks.input.b",
    "decoder.output.weight": "decoder.blocks.output.conv.w",
    "decoder.output.bias": "decoder.blocks.output.conv.b",
}
"""Their names of our tensors outside the blocks; the file's name comes first."""


def from_openai_dvae(encoder: Mapping[str, Tensor], decoder: Mapping[str, Tensor]) -> Autoencoder:
    """The autoencoder of the tensors of encoder.pkl and decoder.pkl, in evaluation mode; sizes are read from shapes.

    Its codes are the argmax of the encoder's logits; its images are those of `unmap_pixels` before the clamp, brought
    to [-1, 1]. Raises ForeignCheckpointError where a tensor is missing, unknown or of another shape.
    """
    model = DVAE(_config(encoder, decoder))
    names = {name: _their_name(name) for name in model.state_dict()}
    ours = {theirs: name for name, theirs in names.items()}
    files = {"encoder": encoder, "decoder": decoder}
    theirs = {f"{file}.{name}": tensor for file, tensors in files.items() for name, tensor in tensors.items()}
    renamed = {ours.get(name, name): tensor for name, tensor in theirs.items()}
    renamed["quantizer.proj.weight"] = renamed["quantizer.proj.weight"].flatten(1)  # (V, D, 1, 1) to (V, D)
    renamed["quantizer.codebook"] = renamed["quantizer.codebook"].flatten(1).T  # (E, V, 1, 1) to (V, E)
    load_renamed(model, renamed, names)
    return model.eval()


def _config(encoder: Mapping[str, Tensor], decoder: Mapping[str, Tensor]) -> DVAEConfig:
    hidden, colors = _shape(encoder, "encoder.pkl", "blocks.input.w")[:2]
    if colors != 3:
        raise ForeignCheckpointError(
            f"encoder.pkl's first convolution reads {colors} channels, not the 3 of an image; "
            "are the encoder and the decoder swapped?"
        )
    codes, latent_dim = _shape(encoder, "encoder.pkl", "blocks.output.conv.w")[:2]
    decoder_width = _shape(decoder, "decoder.pkl", "blocks.input.w")[0]
    return DVAEConfig(
        hidden=hidden,
        blocks_per_group=sum(
            bool(re.fullmatch(r"blocks\.group_1\.block_\d+\.res_path\.conv_1\.w", n)) for n in encoder
        ),
        decoder_width=decoder_width,
        quantizer=GumbelConfig(codebook_size=codes, latent_dim=latent_dim, code_dim=decoder_width),
    )


def _shape(tensors: Mapping[str, Tensor], file: str, name: str) -> tuple[int, ...]:
    """The shape of a convolution's weight."""
    weight = tensors.get(name)
    if weight is None or weight.ndim != 4:
        received = "is missing" if weight is None else f"has the shape {tuple(weight.shape)}"
        raise ForeignCheckpointError(
            f"{file}: {name}, the weight of a convolution, {received}; give the two files of openai/DALL-E"
        )
    return tuple(weight.shape)


def _their_name(name: str) -> str:
    """The file and the name in it of our tensor `name`."""
    if block := _BLOCK.fullmatch(name):
        side, group, index, conv, kind = block.groups()
        part = f"res_path.conv_{int(conv) + 1}" if conv else "id_path"
        return f"{side}.blocks.group_{int(group) + 1}.block_{int(index) + 1}.{part}.{kind[0]}"
    return _ENDS.get(name, name)
