"""A validation split of its own file or shards, in a random order that stays as the data set grows.

Data sets are often sorted by kind, and limited evaluations and previews take the first validation items: those of the
first classes alone, unless they come in another order. Splits that are chosen by a hash come in its order already.
"""

from vqgan.data.captions import all_captions
from vqgan.data.source import Sample, Source
from vqgan.data.split import by_score, position_scores
from vqgan.data.unused import Unused, unused_in


class InRandomOrder:
    """The same items, numbered by a score of their position."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._numbers = by_score(position_scores(len(source)))

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> Sample:
        return self._source[int(self._numbers[index])]

    def captions(self, index: int) -> tuple[str, ...]:
        """Returns the captions that training may show, without reading the image."""
        number, read = int(self._numbers[index]), getattr(self._source, "captions", None)
        return read(number) if read else all_captions(self._source[number])

    @property
    def unused(self) -> tuple[Unused, ...]:
        """What the source skips."""
        return unused_in(self._source)
