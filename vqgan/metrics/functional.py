"""Metrics of two sets of images in one call: PIL images, files, arrays, tensors, or folders.

>>> vqgan.metrics.psnr("originals/", "reconstructions/")
>>> vqgan.metrics.fid("samples/", "data/val/")

`tools/evaluate.py` measures the same and writes each metric's protocol beside it; these are for a notebook.
"""

from collections.abc import Callable, Iterator
from itertools import groupby, islice
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from vqgan.data.folders.listing import EXTENSIONS, list_folder
from vqgan.data.images.inputs import ImagesInput, load_images
from vqgan.data.source import DataError
from vqgan.metrics import fidelity
from vqgan.metrics.inception import InceptionV3, frechet_distance
from vqgan.metrics.inception import inception_score as score_of_logits

_BATCH = 32
"""Images that go through the Inception network at once."""


def psnr(images: ImagesInput, references: ImagesInput) -> float:
    """Returns the mean peak signal-to-noise ratio in dB; equal images count 100 dB (`vqgan.metrics.fidelity.psnr`).

    Two folders are compared by the images' names below them. Raises ValueError for images of different sizes or
    numbers, DataError for what cannot be decoded.
    """
    return _mean_over_pairs(fidelity.psnr, images, references)


def ssim(images: ImagesInput, references: ImagesInput) -> float:
    """Returns the mean structural similarity, at most 1 (`vqgan.metrics.fidelity.ssim`); sets and errors as `psnr`."""
    return _mean_over_pairs(fidelity.ssim, images, references)


def fid(
    images: ImagesInput,
    references: ImagesInput,
    *,
    weights: str = "pretrained",
    device: str | torch.device = "cpu",
) -> float:
    """Returns the Fréchet Inception distance of two sets of images, as torch-fidelity computes it.

    Sets may differ in number and sizes. The distance is biased by the number of images and compares only between sets
    of equal number; published values have 30,000 to 50,000. `weights` is pretrained, random or a file's path.
    Raises ValueError for fewer than 2 images, DataError for what cannot be decoded, ConfigError without the weights.
    """
    network = InceptionV3(weights, torch.device(device))
    features = []
    for name, chosen in (("images", images), ("references", references)):
        rows = torch.cat([network(batch)[0].cpu() for batch in _levels(chosen, device)])
        if len(rows) < 2:
            raise ValueError(f"fid needs 2 {name} at least, received {len(rows)}")
        features.append(rows)
    return frechet_distance(*features)


def inception_score(
    images: ImagesInput, *, weights: str = "pretrained", device: str | torch.device = "cpu"
) -> tuple[float, float]:
    """Returns the mean and standard deviation over ten splits of the inception score; arguments and errors as `fid`."""
    network = InceptionV3(weights, torch.device(device))
    return score_of_logits(torch.cat([network(batch)[1].cpu() for batch in _levels(images, device)]))


def _mean_over_pairs(
    metric: Callable[[Tensor, Tensor], Float[Tensor, "B"]], images: ImagesInput, references: ImagesInput
) -> float:
    if (folder := _folder(images)) is not None and (other := _folder(references)) is not None:
        names = _same_names(folder, other)
        pairs = [(load_images(folder / name), load_images(other / name)) for name in names]
    else:
        pairs = [(load_images(images), load_images(references))]
    values = []
    for one, two in pairs:
        if one.shape != two.shape:
            raise ValueError(
                f"images and references differ: {tuple(one.shape)} and {tuple(two.shape)} (images, channels, height, "
                "width); pass as many, of the same size"
            )
        values.append(metric(one, two.to(one.device)))
    return torch.cat(values).double().mean().item()


def _levels(images: ImagesInput, device: str | torch.device) -> Iterator[Tensor]:
    """Yields the images rounded to 256 levels, in batches of one size."""
    if (folder := _folder(images)) is None:
        tensor = load_images(images)
        batches = iter(tensor.split(_BATCH))
    else:
        batches = _batches_of(folder)
    for batch in batches:
        yield fidelity.to_uint8(batch).to(device)


def _batches_of(folder: Path) -> Iterator[Float[Tensor, "B 3 H W"]]:
    loaded = (load_images(folder / name) for name in _names(folder))
    for _, same_size in groupby(loaded, key=lambda image: image.shape):
        while chunk := list(islice(same_size, _BATCH)):
            yield torch.cat(chunk)


def _folder(images: ImagesInput) -> Path | None:
    if not isinstance(images, str | Path):
        return None
    path = Path(images).expanduser()
    return path if path.is_dir() else None


def _names(folder: Path) -> list[str]:
    """Returns the images below a folder, by name. Raises DataError where there is none."""
    names = list_folder(folder).images
    if not names:
        raise DataError(f"no images in {str(folder)!r} (known: {' '.join(EXTENSIONS)})")
    return names


def _same_names(folder: Path, other: Path) -> list[str]:
    names, others = _names(folder), _names(other)
    if names != others:
        alone = sorted(set(names) ^ set(others))
        raise ValueError(
            f"two folders are compared by names, and {len(alone)} are in one of them alone, such as {alone[0]!r}"
        )
    return names
