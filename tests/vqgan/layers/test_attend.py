"""Scaled dot-product attention: both ways against the formula, and which way is taken."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vqgan.layers import attend as module
from vqgan.layers.attend import SHORT, attend

pytestmark = pytest.mark.threads


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def formula(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """One query at a time, in float64."""
    found = torch.zeros(*queries.shape[:-1], values.shape[-1], dtype=torch.float64)
    for batch in range(queries.shape[0]):
        for head in range(queries.shape[1]):
            for query in range(queries.shape[2]):
                read = mask[batch, head, query]
                scores = keys[batch, head, read].double() @ queries[batch, head, query].double()
                weights = (scores / queries.shape[-1] ** 0.5).softmax(0)
                found[batch, head, query] = weights @ values[batch, head, read].double()
    return found


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", ["all", "masked", "causal"])
def test_both_ways_are_the_formula(training: bool, kind: str) -> None:
    queries, keys, values = random(2, 3, 5, 4), random(2, 3, 7, 4, seed=1), random(2, 3, 7, 4, seed=2)
    mask = torch.ones(2, 3, 5, 7, dtype=torch.bool)
    given: dict[str, Any] = {}
    if kind == "masked":
        given["mask"] = random(2, 1, 5, 7, seed=3) > -0.5
        given["mask"][..., 0] = True
        mask = given["mask"].expand(2, 3, 5, 7)
    elif kind == "causal":
        given["causal"] = True
        mask = mask.tril()
    with torch.set_grad_enabled(training):
        found = attend(queries, keys, values, **given)
    torch.testing.assert_close(found, formula(queries, keys, values, mask).float())


def test_a_mask_means_the_same_in_bf16() -> None:
    queries, keys, values = (random(1, 2, 6, 8, seed=seed).bfloat16() for seed in range(3))
    mask = torch.ones(6, 6, dtype=torch.bool).tril()[None, None]
    found = attend(queries, keys, values, mask)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(
        found.double(), formula(queries, keys, values, mask.expand(1, 2, 6, 6)), rtol=0, atol=0.02
    )


@pytest.mark.parametrize(
    ("queries", "keys", "training", "fused"),
    [(256, 256, True, False), (257, 256, True, True), (2, SHORT // 2, True, False), (256, 256, False, True)],
)
def test_the_fused_kernel_is_taken_but_for_training_on_short_sequences(
    monkeypatch: pytest.MonkeyPatch, queries: int, keys: int, training: bool, fused: bool
) -> None:
    calls = []

    def watched(*args: Any, **kwargs: Any) -> Tensor:
        calls.append(args)
        return F.scaled_dot_product_attention(*args, **kwargs)

    class Watched:
        scaled_dot_product_attention = staticmethod(watched)

    monkeypatch.setattr(module, "F", Watched)
    with torch.set_grad_enabled(training):
        attend(random(1, 1, queries, 2), random(1, 1, keys, 2), random(1, 1, keys, 2))
    assert bool(calls) == fused
