"""A plan: what a config needs on given GPUs, in metrics; no tensor is made."""

import math
from dataclasses import dataclass, field, replace

from vqgan.config.schema import ConfigError
from vqgan.planning.hardware import GPU
from vqgan.planning.parallelism import ParallelismPlan, total

USABLE = 0.9
"""Share of a GPU's memory that a plan may fill: the rest is for the driver, libraries' workspaces, and the holes that
an allocator leaves."""


@dataclass(frozen=True)
class Hardware:
    """What a run is given. Raises ConfigError for a share or a price that cannot be."""

    parallelism: ParallelismPlan
    gpu: GPU
    mfu: float = 0.4
    price: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.mfu <= 1:
            raise ConfigError(f"--mfu {self.mfu:g}: a share of the GPUs' peak, above 0 and at most 1; 0.4 for 40%")
        if self.price is not None and not 0 <= self.price < math.inf:
            raise ConfigError(f"--price-per-gpu-hour {self.price:g}: a number from 0 on")


@dataclass(frozen=True)
class Suggestion:
    """Options to add to the command, and the bytes on a GPU after that."""

    change: str
    bytes: int


@dataclass(frozen=True)
class SamplingCost:
    """One image: operations, bytes of cache, and seconds at least where the bandwidth is known."""

    settings: str
    flops: float
    cache: int
    seconds: float | None


@dataclass(frozen=True)
class Plan:
    """All metrics; memory in bytes, arithmetic in operations."""

    name: str
    what: str
    parts: dict[str, int]
    frozen_parts: dict[str, int]
    hardware: Hardware
    at_a_time: int
    batch: int
    steps: int
    codes_a_image: int
    """0 where nothing is done with codes."""
    memory: dict[str, int]
    flops_a_image: float
    sampling_cost: SamplingCost | None = None
    sampling_copy: int = 0
    note: str = ""
    """What was planned otherwise than the config says."""
    suggestions: list[Suggestion] = field(default_factory=list)

    @property
    def needed(self) -> int:
        """Bytes on each GPU."""
        return total(self.memory)

    @property
    def room(self) -> float:
        """Bytes that may be filled on each GPU."""
        return USABLE * self.hardware.gpu.memory * 1e9

    @property
    def fits(self) -> bool:
        """Whether it fits in training, and in sampling between steps."""
        return max(self.needed, self.sampling_copy) <= self.room

    @property
    def seconds_a_step(self) -> float | None:
        """At the stated share of the GPUs' peak."""
        gpu, parallelism = self.hardware.gpu, self.hardware.parallelism
        if gpu.tflops is None:
            return None
        return self.flops_a_image * self.batch / (parallelism.gpus * gpu.tflops * 1e12 * self.hardware.mfu)

    @property
    def days(self) -> float | None:
        """To the config's end."""
        return None if self.seconds_a_step is None else self.seconds_a_step * self.steps / 86_400

    def with_suggestions(self, suggestions: list[Suggestion]) -> "Plan":
        return replace(self, suggestions=suggestions)
