"""One step's memory on each of several GPUs, by how weights are divided over them (`vqgan.training.parallel.sharding`).

ddp: every GPU has all; gradients are exchanged through buffers of their size. fsdp: weights, gradients, moments and
averages are divided over all GPUs; hybrid: over those of a node, and every node has them all. What fsdp gathers is a
formula: the layer at work and the next, in the precision of the passes; the weights outside of layers, in fp32,
throughout; gradients of the layer at work, and their fp32 copy on the way.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from vqgan.config.schema import ConfigError
from vqgan.planning.step_recorder import Kind
from vqgan.planning.step_trace import StepTrace

Strategy = Literal["ddp", "fsdp", "hybrid"]
STRATEGIES: tuple[Strategy, ...] = ("ddp", "fsdp", "hybrid")

_DIVIDED: tuple[Kind, ...] = ("weights", "gradients", "optimizer state", "averaged copy", "in the update")


@dataclass(frozen=True)
class ParallelismPlan:
    """How many GPUs, and what each has. Raises ConfigError for numbers that no machines have."""

    strategy: Strategy = "ddp"
    gpus: int = 1
    gpus_a_node: int = 8

    def __post_init__(self) -> None:
        for option, number in (("--gpus", self.gpus), ("--gpus-a-node", self.gpus_a_node)):
            if number < 1:
                raise ConfigError(f"{option} {number}: a whole number from 1 on")
        if self.strategy == "hybrid" and self.gpus > self.gpus_a_node and self.gpus % self.gpus_a_node:
            raise ConfigError(
                f"--gpus {self.gpus} are no whole nodes of --gpus-a-node {self.gpus_a_node}, and --strategy hybrid "
                "keeps a copy of the weights on each node; give a multiple"
            )

    @property
    def parts(self) -> int:
        """Into how many parts weights are divided."""
        if self.strategy == "ddp":
            return 1
        return self.gpus if self.strategy == "fsdp" else min(self.gpus, self.gpus_a_node)

    def memory(self, step: StepTrace, in_16_bits: bool) -> dict[str, int]:
        """Returns bytes by kind on one GPU, at the moment of most."""
        shares: dict[Kind, float] = {}
        if self.parts > 1:
            shares = dict.fromkeys(_DIVIDED, 1 / self.parts) | {"weights in 16 bits": 0.0}
        peak = step.footprint.peak(shares)
        memory: dict[str, int] = {kind: size for kind, size in peak.by_kind.items() if size}
        if self.parts > 1:
            unit = step.largest_block // 4
            outside = 4 * step.outside_blocks
            memory["gathered weights"] = 2 * (2 if in_16_bits else 4) * unit + outside
            memory["gradients on their way"] = 10 * unit + outside
        elif self.gpus > 1:
            memory["exchange buffers"] = step.footprint.largest("gradients")
        return memory


def total(memory: Mapping[str, int]) -> int:
    """Of all kinds."""
    return sum(memory.values())
