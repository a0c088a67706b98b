"""The nearest-code search: the codes of a brute-force search, in any tiling, for any batch, in bounded memory."""

import platform
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vqgan.quantizers import search
from vqgan.quantizers.search import nearest_codes

pytestmark = pytest.mark.threads


@pytest.fixture(params=["oneDNN", "BLAS"])
def product(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to a matrix product."""
    if request.param == "BLAS":
        monkeypatch.setattr(search, "_onednn_linear_is_as_expected", lambda: False)
    elif not search._onednn_linear_is_as_expected():
        pytest.skip("this PyTorch has no oneDNN linear map of the expected signature")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def distances(vectors: Tensor, codebook: Tensor) -> Tensor:
    return (vectors.double()[:, None] - codebook.double()).square().sum(-1)


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="oneDNN is part of PyTorch for x86")
def test_this_pytorch_has_the_fast_product() -> None:
    """Without it the search is right, but takes nearly twice as long: a new signature must not pass unseen."""
    assert search._onednn_linear_is_as_expected()


@pytest.mark.usefixtures("product")
@pytest.mark.parametrize(("codes", "dim"), [(500, 6), (127, 32), (129, 3), (1, 4), (9000, 2)])
def test_codes_are_those_of_a_brute_force_search(codes: int, dim: int) -> None:
    vectors, codebook = random(300, dim), random(codes, dim, seed=1)
    expected = distances(vectors, codebook)
    best, second = expected.topk(min(2, codes), largest=False).values[:, [0, -1]].unbind(-1)
    clear = (second - best > 1e-5) | (codes == 1)  # closer than that, fp32 may see the other order
    assert clear.float().mean() > 0.95
    found = nearest_codes(vectors, codebook)
    assert found.shape == (300,)
    assert found.dtype == torch.int64
    assert torch.equal(found[clear], expected.argmin(-1)[clear])


@pytest.mark.usefixtures("product")
@pytest.mark.parametrize(
    ("elements", "code_tile", "block"),
    [(1 << 20, 8192, 128), (64, 16, 8), (40, 20, 1), (7, 3, 3), (1, 1, 1), (5, 16, 8)],
)
def test_the_lowest_index_wins_a_tie_in_any_tiling(
    monkeypatch: pytest.MonkeyPatch, elements: int, code_tile: int, block: int
) -> None:
    monkeypatch.setattr(search, "_CPU_TILE_ELEMENTS", elements)
    monkeypatch.setattr(search, "_TILE_CODES", code_tile)
    monkeypatch.setattr(search, "_BLOCK_CODES", block)
    # Small whole numbers: scores are exact, so equal distances are equal to the bit. Every code is there twice.
    generator = torch.Generator().manual_seed(0)
    codebook = torch.randint(-3, 4, (25, 3), generator=generator).float().repeat(2, 1)
    vectors = torch.randint(-3, 4, (60, 3), generator=generator).float()
    every = distances(vectors, codebook)
    lowest = (every == every.min(-1, keepdim=True).values).int().argmax(-1)
    assert torch.equal(nearest_codes(vectors, codebook), lowest)
    assert lowest.max() < 25


@pytest.mark.usefixtures("product")
def test_the_code_of_a_vector_does_not_depend_on_the_call_it_is_in() -> None:
    # Codes in pairs that differ in the last bits: whatever rounds otherwise chooses the other one.
    half = torch.nn.functional.normalize(random(256, 32), dim=-1)
    codebook = torch.cat([half, half * (1 + 1e-7 * random(256, 32, seed=1))])
    vectors = random(2100, 32, seed=2)  # tiles of 2048 vectors: the second has few
    together = nearest_codes(vectors, codebook)
    assert (together < 256).any()
    assert (together >= 256).any()
    for size in (1, 2, 3, 7, 15, 16, 17, 100):
        some = vectors[-3 * size :].split(size)
        assert torch.equal(torch.cat([nearest_codes(x, codebook) for x in some]), together[-3 * size :])


def test_there_is_never_a_matrix_of_vectors_times_codes() -> None:
    class Watch(TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            for part in result if isinstance(result, tuple | list) else [result]:
                if isinstance(part, Tensor):
                    # What is stored: a view that repeats a row, or shows part of a tile, holds no memory of its own.
                    self.largest = max(self.largest, part.untyped_storage().nbytes() // part.element_size())
            return result

    vectors, codebook = random(3000, 4), random(9000, 4, seed=1)
    with Watch() as watch:
        codes = nearest_codes(vectors, codebook)
    assert search._CPU_TILE_ELEMENTS // 2 < watch.largest <= search._CPU_TILE_ELEMENTS
    assert watch.largest < len(vectors) * len(codebook) / 20
    assert torch.equal(codes[-20:], distances(vectors[-20:], codebook).argmin(-1))


@pytest.mark.usefixtures("product")
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_vectors_that_are_not_numbers_get_codes_that_exist(value: float) -> None:
    vectors = random(40, 4)
    vectors[::2, 1] = value
    codebook = random(130, 4, seed=1)
    codes = nearest_codes(vectors, codebook)
    assert 0 <= codes.min() <= codes.max() < 130
    assert torch.equal(codes[1::2], nearest_codes(vectors[1::2], codebook)), "the others keep theirs"
    assert nearest_codes(torch.full((3, 4), float("nan")), codebook).tolist() == [0, 0, 0]


def test_a_copy_of_the_last_code_that_fills_a_block_stands_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = search._scores

    def rounded_up_towards_the_end(*arguments: Tensor) -> Tensor:
        scores = exact(*arguments)
        return scores + 1e-6 * torch.arange(scores.shape[1])

    monkeypatch.setattr(search, "_scores", rounded_up_towards_the_end)
    codebook = random(130, 4)
    assert nearest_codes(codebook[-2:], codebook).tolist() == [128, 129]


@pytest.mark.usefixtures("product")
def test_no_vectors_have_no_codes() -> None:
    assert nearest_codes(torch.zeros(0, 4), random(5, 4)).shape == (0,)


@pytest.mark.usefixtures("product")
def test_any_memory_layout_is_searched() -> None:
    vectors, codebook = random(6, 300), random(6, 200, seed=1)
    plain = nearest_codes(vectors.T.contiguous(), codebook.T.contiguous())
    assert torch.equal(nearest_codes(vectors.T, codebook.T), plain)
    assert torch.equal(nearest_codes(vectors.T[::2], codebook.T), plain[::2])


@pytest.mark.usefixtures("product")
def test_the_comparison_is_in_fp32_whatever_the_autocast_and_the_input() -> None:
    vectors, codebook = random(500, 8), random(1000, 8, seed=1)
    plain = nearest_codes(vectors, codebook)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nearest_codes(vectors, codebook), plain)
    rounded = nearest_codes(vectors.bfloat16(), codebook.bfloat16())
    assert torch.equal(rounded, nearest_codes(vectors.bfloat16().float(), codebook.bfloat16().float()))
    assert not torch.equal(rounded, plain)


@pytest.mark.usefixtures("product")
def test_nothing_is_kept_for_a_gradient() -> None:
    kept: list[Tensor] = []
    vectors, codebook = random(20, 4).requires_grad_(), random(30, 4, seed=1).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda nothing: nothing):
        nearest_codes(vectors, codebook)
        assert not kept
        (vectors * vectors).sum()
        assert kept, "or else the hook would see nothing"


@pytest.mark.usefixtures("product")
def test_threads_change_nothing() -> None:
    vectors, codebook = random(3000, 32), random(700, 32, seed=1)
    alone = nearest_codes(vectors, codebook)
    with threads(2):
        assert torch.equal(nearest_codes(vectors, codebook), alone)
    with ThreadPoolExecutor(2) as pool:
        for codes in pool.map(lambda _: nearest_codes(vectors, codebook), range(6)):
            assert torch.equal(codes, alone)
