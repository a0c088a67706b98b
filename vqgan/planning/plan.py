"""A plan: what a config needs on given GPUs, in figures; no tensor is made."""

import math
from dataclasses import dataclass, field, replace

from vqgan.config import ConfigError
from vqgan.planning.division import Division, total
from vqgan.planning.hardware import GPU

USABLE = 0.9
"""Share of a GPU's memory that a plan may fill: the rest is for the driver, libraries' workspaces, and the holes that
an allocator leaves."""


@dataclass(frozen=True)
class Machines:
    """What a run is given. Raises ConfigError for a share or a price that cannot be."""

    division: Division
    gpu: GPU
    mfu: float = 0.4
    price: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.mfu <= 1:
            raise ConfigError(f"--mfu {self.mfu:g}: a share of the GPUs' peak, above 0 and at most 1; 0.4 for 40%")
        if self.price is not None and not 0 <= self.price < math.inf:
            raise ConfigError(f"--price-per-gpu-hour {self.price:g}: a number from 0 on")


@dataclass(frozen=True)
class Remedy:
    """Options to add to the command, and the bytes on a GPU after that."""

    change: str
    bytes: int


@dataclass(frozen=True)
class Drawing:
    """One picture: operations, bytes of cache, and seconds at least where the bandwidth is known."""

    settings: str
    flops: float
    cache: int
    seconds: float | None


@dataclass(frozen=True)
class Plan:
    """All figures; memory in bytes, arithmetic in operations."""

    name: str
    what: str
    parts: dict[str, int]
    frozen_parts: dict[str, int]
    machines: Machines
    at_a_time: int
    batch: int
    steps: int
    codes_a_picture: int
    """0 where nothing is done with codes."""
    memory: dict[str, int]
    flops_a_picture: float
    drawing: Drawing | None = None
    copy_to_draw: int = 0
    note: str = ""
    """What was planned otherwise than the config says."""
    remedies: list[Remedy] = field(default_factory=list)

    @property
    def needed(self) -> int:
        """Bytes on each GPU."""
        return total(self.memory)

    @property
    def room(self) -> float:
        """Bytes that may be filled on each GPU."""
        return USABLE * self.machines.gpu.memory * 1e9

    @property
    def fits(self) -> bool:
        """In training, and in drawing between steps."""
        return max(self.needed, self.copy_to_draw) <= self.room

    @property
    def seconds_a_step(self) -> float | None:
        """At the stated share of the GPUs' peak."""
        gpu, division = self.machines.gpu, self.machines.division
        if gpu.tflops is None:
            return None
        return self.flops_a_picture * self.batch / (division.gpus * gpu.tflops * 1e12 * self.machines.mfu)

    @property
    def days(self) -> float | None:
        """To the config's end."""
        return None if self.seconds_a_step is None else self.seconds_a_step * self.steps / 86_400

    def with_remedies(self, remedies: list[Remedy]) -> "Plan":
        return replace(self, remedies=remedies)
