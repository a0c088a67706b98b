"""Nearest code of a codebook, tile by tile: memory stays bounded whatever the number of (vector, code) pairs.

On a CPU the search costs little more than its matrix products, because a tile of scores never leaves the cache and no
index is looked for among all codes: the maximum of every block of codes (vectorized, unlike an argmax) names the block
that wins, and only there the index is looked for.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int64
from torch import Tensor

_CPU_TILE_ELEMENTS = 1 << 20
"""Largest number of scores held at once on a CPU: 4 MiB of fp32 stay in its cache."""
_GPU_TILE_ELEMENTS = 1 << 24
"""The same elsewhere: 64 MiB. The launches of many small tiles would cost more than their arithmetic."""
_TILE_CODES = 8192
"""Codes in one tile: a multiple of `_BLOCK_CODES`."""
_BLOCK_CODES = 128
"""Codes in one block: near the square root of a codebook's size, where both searches for an index are short."""
_LEAST_ROWS = 16
"""A matrix product of fewer rows may round otherwise: the code of a vector must not depend on the size of the call."""
_ONEDNN_LINEAR = (
    "mkldnn::_linear_pointwise(Tensor X, Tensor W, Tensor? B, str attr, Scalar?[] scalars, str? algorithm) -> Tensor Y"
)
"""oneDNN's linear map as `_scores` calls it. It is not public: another signature means that it is not called."""


@torch.no_grad()
def nearest_codes(vectors: Float[Tensor, "M D"], codebook: Float[Tensor, "V D"]) -> Int64[Tensor, "M"]:
    """Index of the closest code (Euclidean) to each vector, compared in fp32; the lowest index wins a tie.

    A non-finite vector gets an arbitrary valid code. No gradient is recorded.
    """
    with torch.autocast(vectors.device.type, enabled=False):
        size = len(codebook)
        # Whole blocks: copies of the last code can win only against it, and then stand for it.
        filler = codebook[-1:].expand(-size % _BLOCK_CODES, -1)
        codebook = torch.cat([codebook, filler]).float()
        # |v - c|^2 = |v|^2 - 2 (v.c - |c|^2 / 2): the vector's own norm does not matter.
        bias = codebook.square().sum(-1) / -2
        elements = _CPU_TILE_ELEMENTS if vectors.is_cpu else _GPU_TILE_ELEMENTS
        rows = max(1, elements // min(len(codebook), _TILE_CODES))
        codes = [_nearest_of_tile(tile.float(), codebook, bias) for tile in vectors.split(rows)]
        return torch.cat(codes).clamp_(max=size - 1)


def _nearest_of_tile(
    vectors: Float[Tensor, "T D"], codebook: Float[Tensor, "V D"], bias: Float[Tensor, "V"]
) -> Int64[Tensor, "T"]:
    rows = len(vectors)
    if rows < _LEAST_ROWS:
        vectors = F.pad(vectors, (0, 0, 0, _LEAST_ROWS - rows))
    best, codes = _first_largest(_scores(vectors, codebook[:_TILE_CODES], bias[:_TILE_CODES]))
    for start in range(_TILE_CODES, len(codebook), _TILE_CODES):
        part = slice(start, start + _TILE_CODES)
        score, index = _first_largest(_scores(vectors, codebook[part], bias[part]))
        # No indexing by a mask: on a GPU it would wait for the device.
        codes = torch.where(score > best, index + start, codes)
        best = torch.maximum(score, best)
    return codes[:rows]


def _first_largest(scores: Float[Tensor, "T V"]) -> tuple[Float[Tensor, "T"], Int64[Tensor, "T"]]:
    """Returns the largest score of each row, and where it stands first."""
    blocks = rearrange(scores, "t (block code) -> t block code", code=_BLOCK_CODES)
    best, block = blocks.amax(-1).max(-1)
    row = torch.arange(len(scores), device=scores.device)
    return best, block * _BLOCK_CODES + blocks[row, block].argmax(-1)


def _scores(
    vectors: Float[Tensor, "T D"], codebook: Float[Tensor, "V D"], bias: Float[Tensor, "V"]
) -> Float[Tensor, "T V"]:
    # PyTorch's BLAS (MKL) uses half the width of an AMD processor's AVX-512 registers; its oneDNN uses all of it.
    if vectors.is_cpu and _onednn_linear_is_as_expected():
        scores: Tensor = torch.ops.mkldnn._linear_pointwise(vectors, codebook, bias, "none", [], "")
        return scores
    return torch.addmm(bias, vectors, codebook.T)


def _onednn_linear_is_as_expected() -> bool:
    """Returns whether this PyTorch has it (a build for ARM or for macOS may not), with the signature that is written
    here."""
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    return str(torch.ops.mkldnn._linear_pointwise.default._schema) == _ONEDNN_LINEAR
