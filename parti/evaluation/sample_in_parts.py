"""Generates many images and yields them in parts, so that they need not all fit in memory."""

from collections.abc import Callable, Iterator

from tqdm import tqdm

from parti.base_pipeline import GeneratedImage, Requests

Generate = Callable[[Requests, int], Iterator[GeneratedImage]]
"""Yields the images of (prompt, seed) pairs in their order, so many at once."""


def sample_in_parts(
    generate: Generate, wanted: Requests, batch_size: int, progress: bool = False
) -> Iterator[list[GeneratedImage]]:
    """Yields the images of (prompt, seed) pairs, `batch_size` at a time.

    The displayed rate includes the time that the caller takes for each part, so the remaining time is correct.
    """
    with tqdm(total=len(wanted), unit="image", desc="drawing", disable=not (progress and wanted)) as bar:
        for start in range(0, len(wanted), batch_size):
            part = wanted[start : start + batch_size]
            yield list(generate(part, batch_size))
            bar.update(len(part))
