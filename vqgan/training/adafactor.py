"""Adafactor with a first moment in eight bits, as Parti was trained (Shazeer and Stern, arXiv 1804.04235; Parti, arXiv
2206.10789; SPEC D.4).

The second moment of a matrix is kept as the means of its rows and of its columns, the first moment as one int8 a
weight and one scale a row: about one byte a weight in all, where AdamW needs eight. Departures from the Adafactor
paper, with Parti: a fixed beta2 with Adam's bias correction instead of one that grows with the step; decoupled weight
decay; a first moment. As in Google's public optimisers (tensorflow/lingvo, google/praxis) that is a running mean of
the clipped updates without bias correction, which the warm-up makes unimportant; here the rate stays outside of it, so
that it follows the schedule at once. The rate is absolute, not a share of each parameter's own size: Parti does not
say which, and 4.5e-5 times a size of some hundredths would hardly move a weight.

A parameter counts as a matrix of its first dimension by all others, so a convolution (out, in, kh, kw) has one row an
output channel; a vector or a scalar is one row.

Legend: R rows, C columns of a parameter.
"""

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float, Int8
from torch import Tensor

FACTORED_FROM = 128
"""Both sides that a matrix must have for its second moment to be factored; smaller ones save nothing."""
CLIPPED_AT = 1.0
"""Largest root mean square of one parameter's update (section 6 of the Adafactor paper: d)."""
_EPSILON = 1e-30
"""Added to squared gradients (epsilon 1)."""


class Adafactor(torch.optim.Optimizer):
    """See the module's docstring. `groups` as for any torch optimiser; each may have its own `weight_decay`."""

    def __init__(
        self, groups: Iterable[dict[str, Any]], *, lr: float, betas: tuple[float, float], weight_decay: float = 0.0
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One step of every parameter that has a gradient, one after the other: temporaries are of one parameter."""
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
            gradient = _as_matrix(parameter.grad.float())
            update = _normalised(gradient, state, corrected_decay(beta2, state["step"]))
            size = torch.linalg.vector_norm(update) / update.numel() ** 0.5
            update.mul_((1 - beta1) / (size / CLIPPED_AT).clamp_(min=1))

            # 2. The first moment. What is applied is exact; what is kept is rounded.
            update.addcmul_(state["moment"].float(), beta1 * state["scale"])
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(update.reshape(parameter.shape), alpha=-group["lr"])

            # 3. The same noise on every process, and after a resume: it follows from the step and the parameter.
            noise = torch.Generator(update.device).manual_seed(state["step"] * len(parameters) + index)
            state["moment"], state["scale"] = quantised(update, noise)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Exactly what was saved. torch's own would cast every state to its parameter's dtype, int8 to fp32 too."""
        super().load_state_dict(state_dict | {"state": {}})
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for index, saved in state_dict["state"].items():
            parameter = parameters[index]
            self.state[parameter] = {
                name: value.to(parameter.device, copy=True) if isinstance(value, Tensor) else value
                for name, value in saved.items()
            }


def corrected_decay(beta2: float, step: int) -> float:
    """beta2 at `step` (from 1) such that the running mean has no bias towards its start at zero (section 7.1)."""
    return beta2 * (1 - beta2 ** (step - 1)) / (1 - beta2**step)


def quantised(
    moment: Float[Tensor, "R C"], generator: torch.Generator
) -> tuple[Int8[Tensor, "R C"], Float[Tensor, "R 1"]]:
    """Whole numbers in -127 ... 127 and each row's scale, whose product is `moment` on average over the noise.

    Overwrites `moment`. A number is rounded up with the probability of its fractional part, and else down (stochastic
    rounding): what is much smaller than a quantum is not lost.
    """
    scale = torch.maximum(moment.amax(1, keepdim=True), -moment.amin(1, keepdim=True)).div_(127)
    moment.div_(scale.clamp(min=torch.finfo(scale.dtype).tiny))
    # 16 bits are enough, so one draw of 64 gives four. As signed numbers they are uniform in [-1/2, 1/2): a number
    # plus one of them, rounded to the nearest, is the number rounded up or down by chance.
    draws = torch.empty(-(-moment.numel() // 4), dtype=torch.int64, device=moment.device)
    draws.random_(-(2**63), None, generator=generator)
    uniform = draws.view(torch.int16)[: moment.numel()].view(moment.shape)
    moment.add_(uniform, alpha=2.0**-16).round_().clamp_(-127, 127)
    return moment.to(torch.int8), scale


def _normalised(gradient: Float[Tensor, "R C"], state: dict[str, Any], decay: float) -> Float[Tensor, "R C"]:
    """The gradient over the root of its running mean square, which is brought up to date (algorithms 2 and 4)."""
    squares = gradient.square()
    if "variance" in state:
        state["variance"].lerp_(squares.add_(_EPSILON), 1 - decay)
        return torch.rsqrt(state["variance"], out=squares).mul_(gradient)
    rows, columns = state["row_variance"], state["column_variance"]
    rows.lerp_(squares.mean(1, keepdim=True).add_(_EPSILON), 1 - decay)
    columns.lerp_(squares.mean(0, keepdim=True).add_(_EPSILON), 1 - decay)
    return torch.mul(gradient, (rows / rows.mean()).rsqrt_(), out=squares).mul_(columns.rsqrt())


def _as_matrix(tensor: Tensor) -> Float[Tensor, "R C"]:
    return tensor.reshape(len(tensor), -1) if tensor.ndim > 1 else tensor.reshape(1, -1)


def _fresh_state(parameter: Tensor) -> dict[str, Any]:
    rows, columns = _as_matrix(parameter).shape

    def zeros(rows: int, columns: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return parameter.new_zeros(rows, columns, dtype=dtype)

    first = {"step": 0, "moment": zeros(rows, columns, torch.int8), "scale": zeros(rows, 1)}
    if min(rows, columns) < FACTORED_FROM:
        return first | {"variance": zeros(rows, columns)}
    return first | {"row_variance": zeros(rows, 1), "column_variance": zeros(1, columns)}
