"""Shrinking by area, as TensorFlow's `ResizeMethod.AREA`: a pixel is the mean of the patch of the image it covers.

Pixels that the patch covers in part count in part, so that every input pixel has the same weight in total. Pillow's
BOX counts each of them wholly or not at all, and `torch.nn.functional.interpolate(mode="area")` both edges wholly:
they agree with this only where the sides are multiples.
"""

import numpy as np
from jaxtyping import Float, UInt8
from scipy.sparse import csr_array


def shrink_by_area(
    pixels: UInt8[np.ndarray, "h w 3"], side: int, top: int, left: int, size: int
) -> UInt8[np.ndarray, "3 size size"]:
    """Returns a crop of a square image that was shrunk to `side` x `side`: rows and columns from `top`, `left` on.

    Only what the crop needs is computed. Rounded to the nearest of 256 levels. Raises ValueError when `pixels` are not
    a square of at least `side` pixels, or the crop leaves the shrunken image.
    """
    height, width = pixels.shape[:2]
    if height != width or height < side:
        raise ValueError(f"a square of at least {side} pixels can be shrunk to {side}, received {width}x{height}")
    if min(top, left) < 0 or max(top, left) + size > side:
        raise ValueError(f"a crop of {size} pixels at ({left}, {top}) leaves an image of {side}x{side}")
    rows, first_row, end_row = _means(top, size, height / side)
    columns, first_column, end_column = _means(left, size, width / side)
    patch = pixels[first_row:end_row, first_column:end_column].astype(np.float32)  # (r, c, 3)
    count = patch.shape[1]
    patch = (rows @ patch.reshape(len(patch), -1)).reshape(size, count, 3)
    patch = patch.transpose(1, 2, 0).reshape(count, -1)  # (c, 3 * y)
    result: UInt8[np.ndarray, "x 3 y"] = np.rint(columns @ patch).astype(np.uint8).reshape(size, 3, size)
    return result.transpose(1, 2, 0)


def _means(first: int, count: int, scale: float) -> tuple[csr_array, int, int]:
    """Returns the means over [k * scale, (k + 1) * scale) for k = first, ..., as a matrix, and the inputs that it is
    for."""
    edges = np.arange(first, first + count + 1) * scale
    start, end = int(edges[0]), int(np.ceil(edges[-1] - 1e-6))
    taps = int(np.ceil(scale)) + 1
    inputs = edges[:-1].astype(np.int64)[:, None] + np.arange(taps)  # (k, taps)
    shares: Float[np.ndarray, "k taps"] = np.minimum(inputs + 1, edges[1:, None]) - np.maximum(inputs, edges[:-1, None])
    weights = (shares.clip(0) / scale).astype(np.float32)
    places = np.minimum(inputs, end - 1) - start  # beyond the end the weight is 0
    matrix = csr_array((weights.ravel(), places.ravel(), np.arange(count + 1) * taps), shape=(count, end - start))
    return matrix, start, end
