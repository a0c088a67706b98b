"""Codebook care: k-means finds the clusters, dead codes come back to life, and all of it resumes."""

import torch
from torch import Tensor

from vqgan.quantizers import NearestConfig, NearestQuantizer
from vqgan.quantizers.codebook_care import CodebookCare, CodebookCareConfig, kmeans


def care(
    codes: int = 64, dim: int = 8, memory: int = 1024, *, l2_normalize: bool = True, **settings: float
) -> CodebookCare:
    torch.manual_seed(0)
    quantizer = NearestQuantizer(NearestConfig(codebook_size=codes, code_dim=dim, l2_normalize=l2_normalize))
    return CodebookCare(CodebookCareConfig.model_validate({"memory": memory, **settings}), quantizer, seed=3)


def modes(count: int = 64, dim: int = 8) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(count, dim, generator=torch.Generator().manual_seed(5)), dim=-1)


def mixture(centres: Tensor, size: int, seed: int, spread: float = 0.02) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(centres), (size,), generator=generator)
    return centres[chosen] + spread * torch.randn(size, centres.shape[1], generator=generator)


def test_kmeans_finds_separated_clusters() -> None:
    centres = 10 * torch.eye(6)
    found = kmeans(mixture(centres, 600, seed=0, spread=0.1), 6, 10, torch.Generator().manual_seed(0))
    distances = torch.cdist(centres, found)
    assert sorted(distances.argmin(-1).tolist()) == list(range(6))
    assert distances.min(-1).values.max() < 0.05


def test_kmeans_with_more_clusters_than_vectors_puts_one_on_each_vector() -> None:
    vectors = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    found = kmeans(vectors, 8, 3, torch.Generator().manual_seed(0))
    assert found.isfinite().all()
    assert torch.cdist(vectors, found).min(-1).values.max() < 1e-3


def test_the_continuous_phase_ends_with_a_start_from_data() -> None:
    tended = care(continuous_share=0.25)
    assert [tended.is_continuous(step, 10) for step in range(4)] == [True, True, True, False]
    placed = []
    for step in range(10):
        placed.append(len(tended.tend(step, 10)))
        tended.observe(mixture(modes(), 256, seed=step), None)
    assert placed == [0, 0, 0, 64, 0, 0, 0, 0, 0, 0]
    similarity = tended.quantizer.normalize(tended.quantizer.codebook.detach()) @ modes().T
    assert (similarity.max(0).values > 0.95).float().mean() > 0.9, "nearly every mode of the latents has a code"


def test_no_continuous_phase_leaves_the_codebook_alone() -> None:
    tended = care()
    before = tended.quantizer.codebook.detach().clone()
    for step in range(4):
        assert not tended.is_continuous(step, 4)
        assert len(tended.tend(step, 4)) == 0
        tended.observe(mixture(modes(), 16, seed=step), torch.zeros(16, dtype=torch.int64))
    assert torch.equal(tended.quantizer.codebook, before)


def usage_after(tended: CodebookCare, steps: int) -> float:
    """Share of the codes in use at the end of a run that starts with all codes in one place."""
    tended.quantizer.codebook.data = modes()[:1].repeat(64, 1)
    for step in range(steps):
        tended.tend(step, steps)
        latents = mixture(modes(), 256, seed=step)
        tended.observe(latents, tended.quantizer.encode(latents[None])[0])
    return tended.quantizer.encode(mixture(modes(), 4096, seed=99)[None]).unique().numel() / 64


def test_a_collapsed_codebook_is_revived() -> None:
    assert usage_after(care(), 40) == 1 / 64
    assert usage_after(care(revive_every=4), 40) > 0.9


def test_only_unused_codes_move_and_onto_remembered_latents() -> None:
    tended = care(revive_every=2)
    before = tended.quantizer.codebook.detach().clone()
    latents = mixture(modes(), 256, seed=0)
    codes = tended.quantizer.encode(latents[None])[0]
    tended.observe(latents, codes)
    replaced = tended.tend(2, 10)
    used = codes.unique()
    assert sorted([*replaced.tolist(), *used.tolist()]) == list(range(64))
    after = tended.quantizer.codebook.detach()
    assert torch.equal(after[used], before[used])
    distances = torch.cdist(after[replaced], tended.quantizer.normalize(latents))
    assert distances.min(-1).values.max() < 1e-3
    assert len(tended.tend(4, 10)) == 64, "hits are counted anew in every interval"


def test_after_revive_until_share_codes_are_left_in_peace() -> None:
    tended = care(revive_every=2, revive_until_share=0.5)
    tended.observe(mixture(modes(), 256, seed=0), torch.zeros(256, dtype=torch.int64))
    moved = [len(tended.tend(step, 20)) for step in range(20)]
    assert all(count > 0 for count in moved[2:11:2])
    assert not any(moved[11:])
    assert not any(moved[1::2])


def test_memory_keeps_the_newest_latents() -> None:
    tended = care(codes=4, dim=1, memory=4, l2_normalize=False)
    for start in range(0, 9, 3):
        tended.observe(torch.arange(start, start + 3.0)[:, None], None)
    assert sorted(tended.state_dict()["recent"].flatten().tolist()) == [5, 6, 7, 8]  # type: ignore[union-attr]
    tended.observe(torch.arange(20.0, 30.0)[:, None], None)
    assert sorted(tended.state_dict()["recent"].flatten().tolist()) == [26, 27, 28, 29]  # type: ignore[union-attr]


def test_a_restored_copy_makes_the_same_decisions() -> None:
    first, second = care(revive_every=4, continuous_share=0.2), care(revive_every=4, continuous_share=0.2)

    def go(tended: CodebookCare, steps: range) -> list[list[int]]:
        moved = []
        for step in steps:
            moved.append(tended.tend(step, 40).tolist())
            latents = mixture(modes(), 64, seed=step)
            codes = None if tended.is_continuous(step, 40) else tended.quantizer.encode(latents[None])[0]
            tended.observe(latents, codes)
        return moved

    for stop in (5, 22):  # within the continuous phase, and between two revivals
        go(first, range(stop))
        second.quantizer.load_state_dict(first.quantizer.state_dict())
        second.load_state_dict(first.state_dict())
        decisions = go(first, range(stop, 40))
        assert decisions == go(second, range(stop, 40))
        assert any(decisions)
        assert torch.equal(first.quantizer.codebook, second.quantizer.codebook)
        first, second = care(revive_every=4, continuous_share=0.2), care(revive_every=4, continuous_share=0.2)
