"""Draw many pictures and hand them on part by part, so that not all of them lie in memory."""

from collections.abc import Iterator, Sequence

from tqdm import tqdm

from parti.evaluation.subject import Draw
from parti.pipeline import Drawn


def drawn_in_parts(
    draw: Draw, wanted: Sequence[tuple[str, int]], batch_size: int, progress: bool = False
) -> Iterator[list[Drawn]]:
    """The pictures of (prompt, seed) pairs, `batch_size` at a time.

    The rate that is shown counts what is done with the pictures too: so the time that is left is right.
    """
    with tqdm(total=len(wanted), unit="image", desc="drawing", disable=not (progress and wanted)) as bar:
        for start in range(0, len(wanted), batch_size):
            part = wanted[start : start + batch_size]
            yield list(draw(part, batch_size))
            bar.update(len(part))
