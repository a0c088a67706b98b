"""GPUs by name: memory, dense matrix products in bf16 (half of what is printed "with sparsity"), memory bandwidth.

The makers' metrics as public tables quote them; for another GPU, or another variant of these, give the numbers.
"""

import math
from dataclasses import dataclass

from vqgan.config.schema import ConfigError


@dataclass(frozen=True)
class GPU:
    """memory in GB (1e9 bytes), tflops: dense bf16, bandwidth: TB/s; None where it is not known.

    Raises ConfigError for a number that is not above 0.
    """

    memory: float
    tflops: float | None = None
    bandwidth: float | None = None

    def __post_init__(self) -> None:
        for name, number in (("memory", self.memory), ("tflops", self.tflops), ("bandwidth", self.bandwidth)):
            if number is not None and not 0 < number < math.inf:
                raise ConfigError(f"--gpu-{name} {number:g}: a number above 0")


GPUS: dict[str, GPU] = {
    "a100-80": GPU(80, 312, 2.039),  # SXM
    "h100": GPU(80, 989, 3.35),  # SXM
    "h200": GPU(141, 989, 4.8),  # SXM
    "b200": GPU(180, 2250, 8.0),  # HGX and DGX at 1,000 W; 180 GB of the chip's 192 are given there
    "l40s": GPU(48, 362, 0.864),
    "rtx4090": GPU(24, 165.2, 1.008),  # with sums in fp32
}


def gpu_of(
    name: str | None, memory: float | None = None, tflops: float | None = None, bandwidth: float | None = None
) -> GPU:
    """The GPU of that name, with the numbers given in place of its own. Raises ConfigError where none tells memory."""
    if name is not None and name not in GPUS:
        raise ConfigError(f"--gpu {name} is not a choice; one of: {', '.join(GPUS)}")
    known = GPUS[name] if name else None
    if memory is None:
        if known is None:
            raise ConfigError(f"give --gpu ({', '.join(GPUS)}), or --gpu-memory with --gpu-tflops")
        memory = known.memory
    if known is None:
        return GPU(memory, tflops, bandwidth)
    return GPU(
        memory,
        known.tflops if tflops is None else tflops,
        known.bandwidth if bandwidth is None else bandwidth,
    )
