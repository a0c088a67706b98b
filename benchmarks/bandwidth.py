"""The least time that a drawing step can take: the bytes that it has to read, over what this machine streams.

At a batch of a few rows a step multiplies vectors with all matrices of the decoder and looks once at every key and
value so far, so it is bound by memory and not by arithmetic. Bytes counted: the matrices that a step multiplies with,
self-attention's keys and values of all positions up to this one, and the text's keys and
values, once for each distinct caption. In bf16 and int8 it is the layers' matrices that shrink; the output head and the
keys and values stay fp32 (parti/sampling/packed_weights.py). Left out: biases, norms, scales of int8 rows, activations.

The bandwidth is that of the fastest of three products of as many rows with matrices too many for the caches: torch's
plain x @ W, oneDNN's packed weights in fp32, and the same in bf16. So a step whose matrices fit into a cache, as those
of int8 may, can come out above 100%.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

SIDE = 1024
PACKED_FOR = 16
"""Rows that oneDNN lays a matrix out for; at one row as well this layout is read the fastest."""
BYTES_OF_A_LAYERS_WEIGHT = {"fp32": 4, "bf16": 2, "int8": 1}
BYTES_OF_FP32 = 4


@dataclass(frozen=True)
class StepSize:
    """What one position of a decoder reads. `attentions`: square matrices a layer, width x width."""

    depth: int
    width: int
    mlp_width: int
    attentions: int
    codes: int
    text_tokens: int
    image_tokens: int

    @property
    def layer_weights(self) -> int:
        """Entries of the layers' matrices."""
        return self.depth * (self.attentions * self.width**2 + 2 * self.width * self.mlp_width)

    @property
    def head_weights(self) -> int:
        """Entries of the output head's matrix."""
        return self.width * self.codes

    def cached(self, rows: int, captions: int, start: int, end: int) -> float:
        """Entries of the keys and values that a step reads, in the mean over the positions start, ..., end - 1."""
        positions = (start + 1 + end) / 2
        return 2 * self.width * self.depth * (rows * positions + captions * self.text_tokens)

    def bytes(self, precision: str, rows: int, captions: int, start: int, end: int) -> float:
        """Of one of these steps, at `rows` rows with `captions` distinct captions, the empty one included."""
        in_fp32 = self.head_weights + self.cached(rows, captions, start, end)
        return self.layer_weights * BYTES_OF_A_LAYERS_WEIGHT[precision] + in_fp32 * BYTES_OF_FP32


class Bandwidth:
    """Measures in passes, so that they can stand between other work: `measure` once a round."""

    def __init__(self, rows: int, megabytes: int, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._products = products(rows, megabytes)
        self._seconds: dict[str, list[float]] = {name: [] for name in self._products}
        self.measure()
        for seconds in self._seconds.values():
            seconds.clear()  # that was the warm-up

    def measure(self) -> None:
        """One pass of every product over all its matrices."""
        for name, (_, product) in self._products.items():
            start = self._clock()
            product()
            self._seconds[name].append(self._clock() - start)

    def rates(self) -> dict[str, float]:
        """Bytes a second of every product, in the median round."""
        return {name: self._products[name][0] / statistics.median(taken) for name, taken in self._seconds.items()}

    def best(self) -> list[float]:
        """Bytes a second of the fastest product, round by round."""
        rates = self.rates()
        fastest = max(rates, key=rates.__getitem__)
        return [self._products[fastest][0] / seconds for seconds in self._seconds[fastest]]


def products(rows: int, megabytes: int) -> dict[str, tuple[int, Callable[[], None]]]:
    """By name: how many bytes of matrices it reads, and the pass over them."""
    count = max(2, megabytes * 10**6 // (4 * SIDE**2))
    kinds: dict[str, tuple[int, Callable[[], None]]] = {}

    def plain_pass(x: Tensor, matrices: list[Tensor]) -> Callable[[], None]:
        def run() -> None:
            for matrix in matrices:
                torch.mm(x, matrix)

        return run

    def packed_pass(x: Tensor, matrices: list[Tensor]) -> Callable[[], None]:
        linear = torch.ops.mkldnn._linear_pointwise

        def run() -> None:
            for matrix in matrices:
                linear(x, matrix, None, "none", [], "")

        return run

    with torch.no_grad():
        matrices = [torch.randn(SIDE, SIDE) for _ in range(count)]
        x = torch.randn(rows, SIDE)
        kinds["fp32, x @ W"] = (4 * SIDE**2 * count, plain_pass(x, matrices))
        if torch.backends.mkldnn.is_available():
            pack = torch.ops.mkldnn._reorder_linear_weight
            packed = [pack(matrix, PACKED_FOR) for matrix in matrices]
            kinds["fp32, packed"] = (4 * SIDE**2 * count, packed_pass(x, packed))
            halves = [pack(matrix.bfloat16(), PACKED_FOR) for matrix in matrices]
            kinds["bf16, packed"] = (2 * SIDE**2 * count, packed_pass(x.bfloat16(), halves))
    return kinds
