"""GPUs by name: memory, dense matrix products in bf16 (half of what is printed "with sparsity"), memory bandwidth.

The makers' figures as public tables quote them; for another GPU, or another variant of these, give the numbers.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class GPU:
    """memory in GB (1e9 bytes), tflops: dense bf16, bandwidth: TB/s; None where it is not known."""

    memory: float
    tflops: float | None = None
    bandwidth: float | None = None


GPUS: dict[str, GPU] = {
    "a100-80": GPU(80, 312, 2.039),  # SXM
    "h100": GPU(80, 989, 3.35),  # SXM
    "h200": GPU(141, 989, 4.8),  # SXM
    "b200": GPU(180, 2250, 8.0),  # HGX and DGX at 1,000 W; 180 GB of the chip's 192 are given there
    "l40s": GPU(48, 362, 0.864),
    "rtx4090": GPU(24, 165.2, 1.008),  # with sums in fp32
}
