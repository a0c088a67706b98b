"""Gradient scales, one for each residual branch, for training in fp16 (DALL-E, arXiv 2102.12092, section 2.4, figure 4
and appendix D; papers.md C.2).

Gradients of later blocks are too small for fp16, those of earlier ones may be too large for a single loss scale. So
each branch has its own scale: in the backward pass the gradient is multiplied by it on entering the branch and divided
by it on leaving; on the residual path between branches it is fp32 and unscaled. Gradients of the branch's weights are
scaled and are divided before the optimizer step. A branch whose gradients overflow is left out of the update, and the
gradient that it passes on is set to zero, so that earlier branches are not affected.

In bf16, which has the exponents of fp32, none of this is needed.

Departure: the paper divides each worker's loss by the batch of all M workers and compensates with M in every bound.
Here M is 1 by default: torch averages gradients after the workers have computed them.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vqgan.training.parallel.sharded_tensors import whole

INITIAL = 2.0**13
LOWEST, HIGHEST = 2.0**7, 2.0**24
GROWTH = 2 ** (1 / 1000)
"""Growth factor per update with finite gradients: a scale doubles in 1000 updates."""
DIVISOR = 2**0.5
"""Divisor of a scale after a non-finite gradient of its branch."""
UPDATES_BETWEEN_DIVISIONS = 125
"""Least number of updates between two divisions; an overflow in between only skips the branch."""


class BranchEnds:
    """Both ends of one residual branch: `x + ends.leave(branch(ends.enter(x)))`. Does nothing without a scale."""

    def __init__(self) -> None:
        self.scale: Float[Tensor, ""] | None = None

    def enter(self, x: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D"]:
        """Returns `x` in fp32; the gradient that the branch passes back is unscaled and finite."""
        return x if self.scale is None else _Enter.apply(x, self.scale)

    def leave(self, x: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D"]:
        """Returns the branch's result, in fp32; its gradient is multiplied by the scale before it is rounded to
        fp16."""
        return x if self.scale is None else _Leave.apply(x, self.scale)


class Branch(NamedTuple):
    """A branch's ends and the weights between them, its norm's included."""

    ends: BranchEnds
    parameters: Sequence[nn.Parameter]


class GradientScales:
    """The scales of all branches: `unscale` once an update, between the backward pass and the optimizer.

    With several processes the gradients are averaged first, so that all of them see the same overflows.
    """

    def __init__(self, branches: Sequence[Branch], workers: int = 1) -> None:
        """`workers` is the paper's M: what the loss is divided by beyond the batch of one backward pass."""
        self.branches = branches
        self.workers = workers
        self.scales = [workers * INITIAL] * len(branches)
        self._updates = 0
        self._divided_at: list[int | None] = [None] * len(branches)
        # The branches share this tensor: new scales are written in place.
        self._on_device = torch.tensor(self.scales, device=branches[0].parameters[0].device)
        for branch, scale in zip(branches, self._on_device, strict=True):
            branch.ends.scale = scale

    def unscale(self) -> dict[str, Tensor]:
        """Unscales the gradients, drops those of branches with a non-finite one, and updates the scales.

        An optimizer skips parameters without a gradient, including moments and weight decay.
        """
        gradients = [
            [weight.grad for weight in branch.parameters if weight.grad is not None] for branch in self.branches
        ]
        # The largest magnitude: a sum of squares could overflow although no gradient does. One device synchronization.
        largest = [nn.utils.get_total_norm(of_branch, float("inf")) for of_branch in gradients]
        is_finite = whole(torch.stack(largest)).isfinite().tolist()
        for branch, of_branch, scale, finite in zip(self.branches, gradients, self.scales, is_finite, strict=True):
            if finite:
                torch._foreach_mul_(of_branch, 1 / scale)
                continue
            for weight in branch.parameters:
                weight.grad = None
        self.adapt(is_finite)
        left_out = is_finite.count(False) / len(is_finite)
        return {"branches_left_out": torch.tensor(left_out), "least_gradient_scale": torch.tensor(min(self.scales))}

    def adapt(self, is_finite: Sequence[bool]) -> None:
        """Returns the scales after one update, given which branches had only finite gradients."""
        for branch, finite in enumerate(is_finite):
            divided_at = self._divided_at[branch]
            if finite:
                self.scales[branch] *= GROWTH
            elif divided_at is None or self._updates - divided_at >= UPDATES_BETWEEN_DIVISIONS:
                self.scales[branch] /= DIVISOR
                self._divided_at[branch] = self._updates
            self.scales[branch] = min(max(self.scales[branch], self.workers * LOWEST), self.workers * HIGHEST)
        self._updates += 1
        self._on_device.copy_(torch.tensor(self.scales))

    def state_dict(self) -> dict[str, Any]:
        return {"scales": list(self.scales), "divided_at": list(self._divided_at), "updates": self._updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ValueError for the state of another number of branches."""
        if len(state["scales"]) != len(self.scales):
            raise ValueError(
                f"saved for {len(state['scales'])} residual branches, the model has {len(self.scales)}; "
                "resume with the depth that the run began with"
            )
        self.scales, self._divided_at = list(state["scales"]), list(state["divided_at"])
        self._updates = state["updates"]
        self._on_device.copy_(torch.tensor(self.scales))


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(scale)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (scale,) = ctx.saved_tensors
        return torch.nan_to_num(gradient.float() / scale, nan=0.0, posinf=0.0, neginf=0.0), None


class _Leave(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(scale)
        ctx.dtype = x.dtype
        # fp32 here: the sum with the residual would otherwise pass back a gradient that was rounded to fp16 unscaled.
        return x.to(torch.float32, copy=True)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (scale,) = ctx.saved_tensors
        return (gradient * scale).to(ctx.dtype), None
