"""Adafactor with a first moment in eight bits, as Parti was trained (Shazeer and Stern, arXiv 1804.04235; Parti, arXiv
2206.10789; papers.md D.4).

The second moment of a matrix is kept as the means of its rows and of its columns, the first moment as one int8 a
weight and one scale a row: about one byte a weight in all, where AdamW needs eight. Departures from the Adafactor
paper, with Parti: a fixed beta2 with Adam's bias correction instead of one that grows with the step; decoupled weight
decay; a first moment. As in Google's public optimizers (tensorflow/lingvo, google/praxis) that is a running mean of
the clipped updates without bias correction, which the warm-up makes unimportant; here the rate stays outside of it, so
that it follows the schedule at once. The rate is absolute, not a share of each parameter's own size: Parti does not
say which, and 4.5e-5 times a size of some hundredths would hardly move a weight.

A parameter counts as a matrix of its first dimension by all others, so a convolution (out, in, kh, kw) has one row an
output channel; a vector or a scalar is one row.

Where weights are divided between processes along their first dimension, each keeps the statistics of its rows (of a
vector: its columns). Means over all rows and the size of an update are then sums over the processes: two small
exchanges a parameter. The metrics are those of whole weights, up to the order of the sums.

Legend: R rows, C columns of a parameter.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from vqgan.training.parallel.sharded_tensors import RowShard, row_shard_of, shard_like, state_like, to_local

FACTORED_FROM = 128
"""Both sides that a matrix must have for its second moment to be factored; smaller ones save nothing."""
CLIPPED_AT = 1.0
"""Largest root mean square of one parameter's update (section 6 of the Adafactor paper: d)."""
_EPSILON = 1e-30
"""Added to squared gradients (epsilon 1)."""


class Adafactor(torch.optim.Optimizer):
    """Adafactor with an int8 first moment. `groups` as for any torch optimizer; each may have its own
    `weight_decay`."""

    def __init__(
        self, groups: Iterable[dict[str, Any]], *, lr: float, betas: tuple[float, float], weight_decay: float = 0.0
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Updates every parameter with a gradient, one after the other, so that temporaries are those of one
        parameter."""
        parameters = [(parameter, group) for group in self.param_groups for parameter in group["params"]]
        for index, (parameter, group) in enumerate(parameters):
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if not state:
                state.update(_fresh_state(parameter))
            state["step"] += 1
            beta1, beta2 = group["betas"]

            # 1. The gradient over the root of its second moment, clipped.
            part = _Part.of(parameter)
            weight, gradient = to_local(parameter), _as_matrix(to_local(parameter.grad).float(), part)
            update = _normalized(gradient, state, corrected_decay(beta2, state["step"]), part.rows)
            size = part.norm(update) / parameter.numel() ** 0.5
            update.mul_((1 - beta1) / (size / CLIPPED_AT).clamp_(min=1))

            # 2. The first moment. What is applied is exact; what is kept is rounded.
            moment, scale = to_local(state["moment"]), to_local(state["scale"])
            update.addcmul_(moment.float(), beta1 * scale)
            weight.mul_(1 - group["lr"] * group["weight_decay"])
            weight.add_(update.reshape(weight.shape), alpha=-group["lr"])

            # 3. The same noise on every process, and after a resume: it follows from the step and the parameter.
            noise = torch.Generator(update.device).manual_seed(state["step"] * len(parameters) + index)
            for kept, new in zip((moment, scale), quantized(update, noise, part), strict=True):
                kept.copy_(new)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Exactly what was saved, divided as the weights are now.

        torch's own would cast every state to its parameter's dtype, int8 to fp32 too.
        """
        super().load_state_dict(state_dict | {"state": {}})
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for index, saved in state_dict["state"].items():
            parameter = parameters[index]
            own = _fresh_state(parameter)
            for name, value in saved.items():
                if isinstance(value, Tensor):
                    value = shard_like(value, own.get(name, value)).to(parameter.device, copy=True)
                self.state[parameter][name] = value


@dataclass(frozen=True)
class _Part:
    """Which part of a parameter, seen as a matrix of `columns`, is here: rows of it, or columns if it `is_row`."""

    rows: RowShard
    columns: int
    is_row: bool

    @staticmethod
    def of(parameter: Tensor) -> "_Part":
        is_row = parameter.ndim < 2
        return _Part(row_shard_of(parameter), math.prod(parameter.shape[0 if is_row else 1 :]), is_row)

    @property
    def start(self) -> int:
        """Place of its first element in the whole, row by row."""
        return self.rows.start * (1 if self.is_row else self.columns)

    @property
    def total(self) -> int:
        """Elements of the whole."""
        return self.rows.total * (1 if self.is_row else self.columns)

    def norm(self, own: Tensor) -> Float[Tensor, ""]:
        """Of the whole, each process having its part."""
        norm = torch.linalg.vector_norm(own)
        return norm if self.rows.group is None else self.rows.sum(norm.square()).sqrt()


def corrected_decay(beta2: float, step: int) -> float:
    """beta2 at `step` (from 1) such that the running mean has no bias towards its start at zero (section 7.1)."""
    return beta2 * (1 - beta2 ** (step - 1)) / (1 - beta2**step)


def quantized(
    moment: Float[Tensor, "R C"], generator: torch.Generator, part: _Part | None = None
) -> tuple[Int8[Tensor, "R C"], Float[Tensor, "R 1"]]:
    """Whole numbers in -127 ... 127 and each row's scale, whose product is `moment` on average over the noise.

    Overwrites `moment`. A number is rounded up with the probability of its fractional part, and else down (stochastic
    rounding): what is much smaller than a quantum is not lost. Of a `part` the noise is that which the whole would get.
    """
    if moment.numel():
        scale = torch.maximum(moment.amax(1, keepdim=True), -moment.amin(1, keepdim=True)).div_(127)
    else:
        scale = moment.new_zeros(len(moment), 1)
    if part is not None and part.is_row:
        scale = part.rows.max(scale)
    moment.div_(scale.clamp(min=torch.finfo(scale.dtype).tiny))
    # 16 bits are enough, so one draw of 64 gives four. As signed numbers they are uniform in [-1/2, 1/2): a number
    # plus one of them, rounded to the nearest, is the number rounded up or down by chance.
    start, total = (0, moment.numel()) if part is None else (part.start, part.total)
    draws = torch.empty(-(-total // 4), dtype=torch.int64, device=moment.device)
    draws.random_(-(2**63), None, generator=generator)
    uniform = draws.view(torch.int16)[start : start + moment.numel()].view(moment.shape)
    moment.add_(uniform, alpha=2.0**-16).round_().clamp_(-127, 127)
    return moment.to(torch.int8), scale


def _normalized(
    gradient: Float[Tensor, "R C"], state: dict[str, Any], decay: float, parts: RowShard
) -> Float[Tensor, "R C"]:
    """Returns the gradient over the root of its running mean square, which is brought up to date (algorithms 2 and
    4)."""
    squares = gradient.square()
    if "variance" in state:
        variance = to_local(state["variance"])
        variance.lerp_(squares.add_(_EPSILON), 1 - decay)
        return torch.rsqrt(variance, out=squares).mul_(gradient)
    rows, columns = to_local(state["row_variance"]), state["column_variance"]
    rows.lerp_(squares.mean(1, keepdim=True).add_(_EPSILON), 1 - decay)
    # In one exchange: the means over all rows of the squares, and of the rows' own means.
    means = torch.cat([squares.sum(0), rows.sum(0)])
    means = parts.sum(means).div_(parts.total)
    columns.lerp_(means[None, :-1].add_(_EPSILON), 1 - decay)
    return torch.mul(gradient, (rows / means[-1]).rsqrt_(), out=squares).mul_(columns.rsqrt())


def _as_matrix(own: Tensor, part: _Part) -> Float[Tensor, "R C"]:
    return own.reshape(1, -1) if part.is_row else own.reshape(len(own), part.columns)


def _fresh_state(parameter: Tensor) -> dict[str, Any]:
    part = _Part.of(parameter)
    rows, columns = (1 if part.is_row else part.rows.total), part.columns
    device = parameter.device

    def each(dtype: torch.dtype = torch.float32) -> Tensor:
        """One number for each weight."""
        if part.is_row:
            return state_like(parameter, lambda own: torch.zeros(1, own, dtype=dtype, device=device), (1, columns), 1)
        make = lambda own: torch.zeros(own, columns, dtype=dtype, device=device)  # noqa: E731
        return state_like(parameter, make, (rows, columns), 0)

    def each_row() -> Tensor:
        if part.is_row:
            return torch.zeros(1, 1, device=device)
        return state_like(parameter, lambda own: torch.zeros(own, 1, device=device), (rows, 1), 0)

    first = {"step": 0, "moment": each(torch.int8), "scale": each_row()}
    if min(rows, columns) < FACTORED_FROM:
        return first | {"variance": each()}
    return first | {"row_variance": each_row(), "column_variance": torch.zeros(1, columns, device=device)}
