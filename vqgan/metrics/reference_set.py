"""The images that metrics are about: which ones, how they became squares, how many, and a hash of their pixels.

Two metrics compare only if these agree. The set is the images as the tokenizer is given them, after crop and resize.
"""

import hashlib
import sys
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import accumulate, islice
from typing import Any, Literal

from pydantic import Field

from vqgan.config.schema import Config
from vqgan.data.batch import Batch, Item
from vqgan.data.images.resizing import resizer
from vqgan.data.images.transforms import ImageTransform, TransformConfig
from vqgan.data.iterate import iterate
from vqgan.data.source import DataError, Sample, Source, Split, UnusableSample
from vqgan.data.sources.open_source import SourceConfig, open_source
from vqgan.data.split import by_score, position_scores
from vqgan.data.stream import Stream
from vqgan.metrics.fidelity import to_uint8

EvaluatedSplit = Literal["val", "train", "all"]
_SPLITS: dict[EvaluatedSplit, tuple[Split, ...]] = {
    "val": ("val",),
    "train": ("train",),
    "all": ("val", "train"),
}


class ReferenceSetConfig(Config):
    """Images to evaluate on: the `data` section of a training run, as far as it says what is seen."""

    source: SourceConfig
    """The data set."""
    transform: TransformConfig = TransformConfig()
    """From any image to the model's square; random crops are centered, and nothing is flipped."""
    batch_size: int = Field(64, gt=0)
    """Images that go through the networks at once; rates depend on it, other metrics do not."""
    workers: int = Field(0, ge=0)
    """Loader processes beside this one; 0 loads in this process."""


class ReferenceSet:
    """One pass over `limit` usable images of a split, 0 for all. Raises DataError where there are none.

    With a limit they are a fixed random sample of the split, training images too; of a stream, which has no index, the
    first ones. `sampled` says which, and a line on standard error when the pass begins.

    With `require_captions` an image without one is not usable, and the captions have a hash of their own.
    """

    def __init__(
        self, config: ReferenceSetConfig, split: EvaluatedSplit, limit: int, *, require_captions: bool = False
    ) -> None:
        self.config = config
        self._require_captions = require_captions
        self._split = split
        self._limit = limit
        self._transform = ImageTransform(config.transform)
        size = config.transform.image_size
        self._sources = [
            open_source(config.source, part, size, require_captions=require_captions) for part in _SPLITS[split]
        ]
        self._indexed = [source for source in self._sources if not isinstance(source, Stream)]
        only_indexed = len(self._indexed) == len(self._sources)
        self._count_all = sum(map(len, self._indexed)) if only_indexed else None
        self._hash = hashlib.sha256()
        self._captions: list[str] = []
        self._count = 0
        self._skipped = 0

    @property
    def sampled(self) -> str:
        """Returns which images are used, for people; empty if it is all of them."""
        if not self._limit or (self._count_all is not None and self._count_all <= self._limit):
            return ""
        if self._count_all is None:
            return f"the first {self._limit:,} images of a stream, which are no random sample"
        return f"{self._limit:,} of {self._count_all:,} images, a fixed random sample"

    @property
    def expected(self) -> int | None:
        """How many images to expect; None for a stream without a limit."""
        if self._count_all is None:
            return self._limit or None
        return min(self._count_all, self._limit or self._count_all)

    def batches(self) -> Iterator[Batch]:
        """Yields the images in the data set's order, a sample in the order of its draw.

        Raises DataError where there is none.
        """
        if self.sampled:
            sys.stderr.write(f"note: of the {self._split} split are used {self.sampled}\n")
        images = islice(self._usable(), self._limit or None)
        while chunk := list(islice(images, self.config.batch_size)):
            batch = Batch.of(chunk)
            self._hash.update(to_uint8(batch.images).permute(0, 2, 3, 1).numpy().tobytes())
            self._count += len(batch)
            if self._require_captions:
                self._captions += batch.texts()
            yield batch
        if not self._count:
            raise DataError(f"no usable image in the {self._split} split; skipped {self._skipped}")

    def protocol(self) -> dict[str, Any]:
        """Returns what was seen so far."""
        transform = self.config.transform
        crop: dict[str, Any] = {"crop": transform.evaluation_crop}
        if transform.crop == "pad":
            crop["background"] = transform.background
        captions = {"captions_sha256": captions_sha256(self._captions)} if self._require_captions else {}
        return {
            "reference": {
                "set": "the originals as given to the tokenizer",
                "source": self.config.source.model_dump(mode="json"),
                "split": self._split,
                "limit": self._limit,
                **({"sampled": self.sampled} if self.sampled else {}),
                "images": self._count,
                "skipped": self._skipped,
                "pixels_sha256": self._hash.hexdigest(),
                "hashed": "RGB uint8, image after image, row by row",
                **captions,
            },
            **crop,
            "resize": f"{resizer()} to {transform.image_size}, antialiased; the right size is not resampled",
        }

    def _usable(self) -> Iterator[Item]:
        read = partial(_item, transform=self._transform)
        for source, indices in self._parts():
            for item in iterate(source, read, self.config.workers, indices):
                if isinstance(item, UnusableSample) or (self._require_captions and not item.caption):
                    self._skipped += 1
                else:
                    yield item

    def _parts(self) -> Iterable[tuple[Source | Stream, Sequence[int] | None]]:
        """Returns what is read, and which of its items in which order; None for all.

        Validation images come in a random order of their own, so their first ones are a sample.
        """
        if not self.sampled or self._count_all is None or self._split == "val":
            return [(source, None) for source in self._sources]
        return [(_Joined(self._indexed), by_score(position_scores(self._count_all)).tolist())]


class _Joined:
    """Sources one after the other as one."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources
        self._ends = list(accumulate(map(len, sources)))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Sample:
        number = bisect_right(self._ends, index)
        return self._sources[number][index - (self._ends[number - 1] if number else 0)]


def captions_sha256(captions: Sequence[str]) -> str:
    """SHA-256 of a list of captions: their order counts. Each is UTF-8 with a line feed at its end."""
    return hashlib.sha256("".join(f"{caption}\n" for caption in captions).encode()).hexdigest()


def _item(sample: Sample, transform: ImageTransform) -> Item:
    return Item(transform(sample.image, None), sample.caption, sample.name)
