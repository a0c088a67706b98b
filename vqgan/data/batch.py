"""What the training loop hands to a task."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from vqgan.data.source import UnusableSample


@dataclass(frozen=True)
class Item:
    """One transformed sample, and the unusable ones that were skipped before it."""

    image: Float[Tensor, "3 H W"]
    caption: str | None
    name: str
    skipped: tuple[UnusableSample, ...] = ()

    @classmethod
    def stack(cls, items: "Sequence[Item]") -> "Batch":
        """Returns the batch that items of this kind make."""
        return Batch(
            images=torch.stack([item.image for item in items]),
            captions=[item.caption for item in items],
            names=[item.name for item in items],
            skipped=tuple(skipped for item in items for skipped in item.skipped),
        )


@dataclass(frozen=True)
class Batch:
    """Images in [-1, 1], their captions and names, and what had to be skipped to fill the batch."""

    images: Float[Tensor, "B 3 H W"]
    captions: list[str | None]
    names: list[str]
    skipped: tuple[UnusableSample, ...] = ()
    repeated: bool = False
    """A stand-in for a batch that is not there: it goes through the network, and does not count."""

    @staticmethod
    def of(items: Sequence[Item]) -> "Batch":
        """Stack items, all of one kind."""
        return type(items[0]).stack(items)

    def pin_memory(self) -> "Batch":
        """Returns the same batch in page-locked memory, from which a copy to a GPU does not wait. Called by
        DataLoader."""
        return replace(self, images=self.images.pin_memory())

    def to(self, device: torch.device) -> "Batch":
        """Returns the same batch with its images on `device`."""
        return replace(self, images=self.images.to(device, non_blocking=True))

    def __len__(self) -> int:
        return len(self.images)

    def texts(self) -> list[str]:
        """Returns the captions, a missing one as empty text."""
        return [caption or "" for caption in self.captions]
