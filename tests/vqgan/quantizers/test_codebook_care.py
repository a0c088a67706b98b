"""Codebook care: codebooks start from data, dead codes come back to life, and all of it resumes."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.vqgan.quantizers.mixtures import mixture, modes
from vqgan.codebook_maintenance import CodebookMaintenance, CodebookMaintenanceConfig, codebooks
from vqgan.config.schema import validate
from vqgan.quantizers import (
    FiniteScalarConfig,
    GumbelConfig,
    LookupFreeConfig,
    NearestConfig,
    NearestEMAConfig,
    NearestEMAQuantizer,
    Quantizer,
    QuantizerConfig,
    ResidualConfig,
    build_quantizer,
)

pytestmark = pytest.mark.threads

_LEARNED: dict[str, QuantizerConfig] = {
    "nearest": NearestConfig(codebook_size=64, code_dim=8),
    "nearest, plain": NearestConfig(codebook_size=64, code_dim=8, l2_normalize=False),
    "nearest_ema": NearestEMAConfig(codebook_size=64, code_dim=8, decay=0.9),
    "residual": ResidualConfig(codebook_size=64, code_dim=8, depth=2),
    "residual, own": ResidualConfig(codebook_size=64, code_dim=8, depth=2, shared=False),
}


def maintenance(kind: str = "nearest", memory: int = 1024, **settings: Any) -> CodebookMaintenance:
    torch.manual_seed(0)
    config = validate(CodebookMaintenanceConfig, {"memory": memory, **settings}, "the test")
    return CodebookMaintenance(config, build_quantizer(_LEARNED[kind]), seed=3)


def step_once(tended: CodebookMaintenance, step: int, steps: int) -> int:
    return tended.step(step, steps, copy.deepcopy(tended.quantizer))


def update(tended: CodebookMaintenance, latents: Tensor) -> None:
    """A step without training: the quantizer reads latents, in training mode, and care sees them."""
    tended.update(latents[None], tended.quantizer(latents[None]).codes)


def book(quantizer: Quantizer) -> Tensor:
    return codebooks(quantizer)[0].codebook.detach()


def test_the_continuous_phase_ends_with_a_start_from_data() -> None:
    tended = maintenance(unquantized="25%")
    assert [tended.in_warmup(step, 10) for step in range(4)] == [True, True, True, False]
    placed = []
    for step in range(10):
        placed.append(step_once(tended, step, 10))
        tended.update(mixture(modes(), 256, seed=step)[None], None)
    assert placed == [0, 0, 0, 64, 0, 0, 0, 0, 0, 0]
    similarity = torch.nn.functional.normalize(book(tended.quantizer), dim=-1) @ modes().T
    assert (similarity.max(0).values > 0.95).float().mean() > 0.9, "nearly every mode of the latents has a code"


def error_after_the_start(kind: str) -> float:
    """Mean squared error of new latents, once k-means has placed all codebooks."""
    tended = maintenance(kind, unquantized=4)
    for step in range(4):
        step_once(tended, step, 10)
        tended.update(mixture(modes(), 256, seed=step, spread=0.1)[None], None)
    assert step_once(tended, 4, 10) == 64 * len(codebooks(tended.quantizer))
    assert tended.dead_codes() == 0, "just placed"
    x = mixture(modes(), 1024, seed=99, spread=0.1)[None]
    return float(tended.quantizer.eval()(x).stats["quantization_error"].item())


def test_every_learned_codebook_starts_from_what_the_ones_before_leave_over() -> None:
    one_level = error_after_the_start("nearest, plain")
    assert one_level < 2 * 0.1**2, "a code for nearly every mode leaves the spread within a mode"
    assert error_after_the_start("residual, own") < 0.6 * one_level
    assert error_after_the_start("residual") < 0.9 * one_level, "64 codes for two levels, instead of for one"


def test_no_continuous_phase_leaves_the_codebook_alone() -> None:
    tended = maintenance()
    before = book(tended.quantizer).clone()
    for step in range(4):
        assert not tended.in_warmup(step, 4)
        assert step_once(tended, step, 4) == 0
        update(tended, mixture(modes(), 16, seed=step))
    assert torch.equal(book(tended.quantizer), before)


def usage_after(tended: CodebookMaintenance, steps: int) -> float:
    """Smallest share of a codebook in use at the end of a run that starts with all codes in one place."""
    for learned in codebooks(tended.quantizer):
        learned.place(torch.arange(64), modes()[:1].repeat(64, 1))
    for step in range(steps):
        step_once(tended, step, steps)
        update(tended, mixture(modes(), 256, seed=step, spread=0.1))
    x = mixture(modes(), 4096, seed=99, spread=0.1)[None]
    look_ups = tended.quantizer.look_ups(x, tended.quantizer.encode(x))
    return min(look_up.codes.unique().numel() / 64 for look_up in look_ups if look_up.codes is not None)


@pytest.mark.parametrize("kind", _LEARNED)
def test_a_collapsed_codebook_is_revived(kind: str) -> None:
    assert usage_after(maintenance(kind), 20) < 0.3
    assert usage_after(maintenance(kind, restart_every=4), 60) > 0.9


def test_only_unused_codes_move_and_onto_remembered_latents() -> None:
    tended = maintenance(restart_every=2)
    before = book(tended.quantizer).clone()
    latents = mixture(modes(), 256, seed=0)
    used = tended.quantizer.encode(latents[None]).unique()
    update(tended, latents)
    assert step_once(tended, 2, 10) == 64 - len(used)
    after = book(tended.quantizer)
    moved = (after != before).any(-1)
    assert not moved[used].any()
    distances = torch.cdist(after[moved], torch.nn.functional.normalize(latents, dim=-1))
    assert distances.min(-1).values.max() < 1e-3
    assert step_once(tended, 4, 10) == 64, "hits are counted anew in every interval"


@pytest.mark.parametrize("kind", _LEARNED)
def test_the_averaged_copy_gets_the_same_codes_and_keeps_its_others(kind: str) -> None:
    tended = maintenance(kind, restart_every=2)
    averaged = copy.deepcopy(tended.quantizer)
    for learned in codebooks(averaged):
        learned.codebook.data += 1
    before = copy.deepcopy(averaged)
    update(tended, mixture(modes(), 64, seed=0))
    was = copy.deepcopy(tended.quantizer)
    placed = tended.step(2, 10, averaged)
    found = 0
    for index, learned in enumerate(codebooks(tended.quantizer)):
        moved = (learned.codebook != codebooks(was)[index].codebook).any(-1)
        follower, origin = codebooks(averaged)[index], codebooks(before)[index]
        assert torch.equal(follower.codebook[moved], learned.codebook[moved])
        assert torch.equal(follower.codebook[~moved], origin.codebook[~moved])
        found += int(moved.sum())
        if isinstance(learned, NearestEMAQuantizer):
            torch.testing.assert_close(learned.sums[moved], learned.codebook[moved] * learned.counts[moved][:, None])
    assert found == placed > 0


def test_after_revive_until_codes_are_left_in_peace() -> None:
    for until in ("50%", 10):
        tended = maintenance(restart_every=2, restart_until=until)
        tended.update(mixture(modes(), 256, seed=0)[None], torch.zeros(1, 256, dtype=torch.int64))
        moved = [step_once(tended, step, 20) for step in range(20)]
        assert all(count > 0 for count in moved[2:11:2])
        assert not any(moved[11:])
        assert not any(moved[1::2])


def remembered(tended: CodebookMaintenance) -> list[float]:
    state = tended.state_dict()
    return sorted(state["recent"][state["filled"]][:, 0].tolist())


def rows(first: int, end: int) -> Tensor:
    return torch.arange(float(first), end)[None, :, None].expand(1, -1, 8).clone()


def test_memory_keeps_the_newest_latents() -> None:
    tended = maintenance(memory=4)
    for start in range(0, 9, 3):
        tended.update(rows(start, start + 3), None)
    assert remembered(tended) == [5, 6, 7, 8]
    tended.update(rows(20, 30), None)
    assert remembered(tended) == [26, 27, 28, 29]


def test_latents_that_are_not_numbers_are_neither_remembered_nor_counted_as_hits() -> None:
    tended = maintenance(memory=4, restart_every=1)
    broken = rows(0, 3)
    broken[0, 1, 5] = torch.nan
    tended.update(broken, torch.tensor([[7, 8, 9]]))
    assert remembered(tended) == [0, 2]
    tended.update(rows(3, 6) / 0, None)
    assert remembered(tended) == [0, 2], "a slot that was to be overwritten keeps its latent"
    assert tended.dead_codes().item() == pytest.approx(62 / 64)
    tended = maintenance(memory=4, unquantized=1, restart_every=2)
    tended.update(rows(3, 6) / 0, torch.zeros(1, 3, dtype=torch.int64))
    assert step_once(tended, 1, 10) == step_once(tended, 2, 10) == 0, "nothing to start or revive from"


def test_dead_codes_are_those_without_a_hit_for_a_while() -> None:
    tended = maintenance(dead_after=3)
    shares = []
    for step, code in enumerate([0, 1, 2, 3, 3, 3, 3]):
        step_once(tended, step, 10)
        tended.update(rows(0, 2), torch.tensor([[code, 5]]))
        shares.append(round((1 - tended.dead_codes().item()) * 64))
    assert shares == [2, 3, 4, 4, 3, 2, 2]


@pytest.mark.parametrize(
    "config",
    [
        GumbelConfig(codebook_size=64, latent_dim=8, code_dim=4),
        FiniteScalarConfig(levels=(4, 4, 4)),
        LookupFreeConfig(bits=6),
    ],
)
def test_without_a_learned_codebook_it_only_watches(config: QuantizerConfig) -> None:
    quantizer = build_quantizer(config)
    tended = CodebookMaintenance(CodebookMaintenanceConfig(restart_every=2), quantizer, seed=0)
    before = copy.deepcopy(quantizer.state_dict())
    x = 2 * torch.randn(1, 30, quantizer.latent_dim)
    for step in range(5):
        assert tended.step(step, 10, quantizer) == 0
        tended.update(x, quantizer.encode(x))
    assert tended.dead_codes().item() == pytest.approx(1 - quantizer.encode(x).unique().numel() / 64)
    assert tended.state_dict()["recent"].numel() == 0
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())


@pytest.mark.parametrize("kind", _LEARNED)
@pytest.mark.parametrize("stop", [5, 22])  # within the continuous phase, and between two revivals
def test_a_restored_copy_makes_the_same_decisions(kind: str, stop: int) -> None:
    first, second = (maintenance(kind, memory=256, restart_every=4, unquantized="20%") for _ in range(2))

    def go(tended: CodebookMaintenance, steps: range) -> list[int]:
        moved = []
        for step in steps:
            moved.append(step_once(tended, step, 40))
            latents = mixture(modes(), 64, seed=step)[None]
            unquantized = tended.in_warmup(step, 40)
            tended.update(latents, None if unquantized else tended.quantizer(latents).codes)
        return moved

    go(first, range(stop))
    second.quantizer.load_state_dict(first.quantizer.state_dict())
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    decisions = go(first, range(stop, 40))
    assert decisions == go(second, range(stop, 40))
    assert any(decisions)
    for name, value in first.quantizer.state_dict().items():
        assert torch.equal(value, second.quantizer.state_dict()[name])
    assert torch.equal(first.dead_codes(), second.dead_codes())


def test_a_state_of_another_memory_or_codebook_is_refused() -> None:
    tended = maintenance()
    for other in (maintenance(memory=512), maintenance("residual, own")):
        with pytest.raises(ValueError):
            tended.load_state_dict(other.state_dict())
    with pytest.raises(KeyError):
        tended.load_state_dict({"recent": torch.zeros(1024, 8), "seen": 0})
    with pytest.raises(ValueError, match=r"shape \(1024, 8\), the checkpoint one of \(512, 8\)"):
        tended.load_state_dict(maintenance(memory=512).state_dict())


def test_dead_codes_go_where_latents_are_served_worst() -> None:
    """A hundred latents lie at codes that they have, three far from all: these get the dead codes."""
    quantizer = build_quantizer(NearestConfig(codebook_size=8, code_dim=2, l2_normalize=False))
    tended = CodebookMaintenance(CodebookMaintenanceConfig(restart_every=2, memory=103), quantizer, seed=0)
    with torch.no_grad():
        book(quantizer).copy_(torch.tensor([[float(x), 0.0] for x in range(5)] + [[99.0, 99.0]] * 3))
    served = torch.tensor([[float(row % 5), 0.01] for row in range(100)])
    forlorn = torch.tensor([[0.0, 30.0], [10.0, 30.0], [20.0, 30.0]])
    tended.step(1, 100, copy.deepcopy(quantizer))
    for step in (1, 2, 3):
        tended._step = step
        tended.update(torch.cat([served, forlorn])[None], quantizer.encode(torch.cat([served, served[:3]])[None]))
    assert step_once(tended, 4, 100) == 3
    assert sorted(book(quantizer)[5:].tolist()) == sorted(forlorn.tolist())
