"""The codebook of running means: the recurrence written out, and what it must not be disturbed by."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.vqgan.quantizers.mixtures import mixture, modes
from vqgan.quantizers import NearestEMAConfig, NearestEMAQuantizer, NearestQuantizer
from vqgan.quantizers.nearest import NearestConfig
from vqgan.training.optim.ema import EMA, EMAConfig

pytestmark = pytest.mark.threads


def quantizer(codes: int = 12, dim: int = 4, decay: float = 0.9, *, l2_normalize: bool = False) -> NearestEMAQuantizer:
    torch.manual_seed(0)
    config = NearestEMAConfig(codebook_size=codes, code_dim=dim, decay=decay, l2_normalize=l2_normalize)
    return NearestEMAQuantizer(config)


def latents(seed: int) -> Tensor:
    return torch.randn(2, 30, 4, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("l2_normalize", [True, False])
def test_codes_follow_the_recurrence(l2_normalize: bool) -> None:
    model = quantizer(l2_normalize=l2_normalize)
    start = model.codebook.detach().double()
    sums = F.normalize(start, dim=-1) if l2_normalize else start
    counts = torch.ones(12, dtype=torch.float64)
    book = sums
    for step in range(5):
        x = latents(step).double().flatten(0, 1)
        if l2_normalize:
            x, book = F.normalize(x, dim=-1), F.normalize(book, dim=-1)
        codes = torch.cdist(x, book).argmin(-1)
        for code in range(12):
            sums[code] = 0.9 * sums[code] + 0.1 * x[codes == code].sum(0)
            counts[code] = 0.9 * counts[code] + 0.1 * (codes == code).sum()
        book = sums / ((counts + 1e-5) / (counts.sum() + 12e-5) * counts.sum())[:, None]
        assert torch.equal(model(latents(step)).codes.flatten(), codes)
        torch.testing.assert_close(model.codebook.detach(), book.float())


def test_codes_are_those_of_the_look_up_by_gradient() -> None:
    model = quantizer(l2_normalize=True)
    other = NearestQuantizer(NearestConfig(codebook_size=12, code_dim=4))
    other.codebook.data = model.codebook.detach().clone()
    mine, others = model.eval()(latents(0)), other(latents(0))
    assert torch.equal(mine.codes, others.codes)
    assert torch.equal(mine.latents, others.latents)
    torch.testing.assert_close(mine.loss, 0.25 * mine.stats["quantization_error"])


def test_nothing_but_training_moves_the_codebook_and_no_gradient_does() -> None:
    model = quantizer()
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == []
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.eval()
    model(latents(0))
    model.encode(latents(0))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    x = latents(0).requires_grad_()
    model.train()(x).loss.backward()
    assert not torch.equal(model.codebook, before["codebook"])
    chosen = before["codebook"][torch.cdist(x.detach().flatten(0, 1), before["codebook"]).argmin(-1)]
    assert x.grad is not None
    torch.testing.assert_close(x.grad.flatten(0, 1), 0.25 * 2 * (x.detach().flatten(0, 1) - chosen) / x.numel())


def test_latents_that_are_not_numbers_leave_no_trace() -> None:
    model, other = quantizer(), quantizer()
    broken = latents(0)
    broken[0, ::2, 1] = torch.nan
    broken[1, 5] = torch.inf
    finite = broken.isfinite().all(-1)
    model(broken)
    other(broken[finite][None])
    for name, value in other.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value)


def test_micro_batches_of_one_step_meet_the_same_codes_and_count_as_one_batch() -> None:
    model, other = quantizer(), quantizer()
    start = model.codebook.clone()
    with model.moving_once():
        for part in (*latents(0).split(1), latents(1)):
            model(part)
            assert torch.equal(model.codebook, start), "moved at the end of the step alone"
    other(torch.cat([latents(0), latents(1)]))
    assert not torch.equal(model.codebook, start)
    for name, value in other.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value)
    before = model.codebook.clone()
    with model.moving_once():
        pass
    assert torch.equal(model.codebook, before), "a step without a batch moves nothing"


def test_a_step_that_fails_moves_nothing_and_leaves_no_trace() -> None:
    model, other = quantizer(), quantizer()
    with pytest.raises(ZeroDivisionError), model.moving_once():
        model(latents(0)).loss / (1 // 0)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in other.state_dict().items())
    for each in (model, other):
        each(latents(1))
    assert torch.equal(model.codebook, other.codebook)


def test_a_placed_code_stays_where_it_was_put() -> None:
    model = quantizer(decay=0.99)
    model(latents(0))
    there = torch.full((2, 4), 50.0)  # far from all latents: nobody will choose it
    model.place(torch.tensor([3, 7]), there)
    for step in range(20):
        model(latents(step))
    torch.testing.assert_close(model.codebook[[3, 7]], there, rtol=1e-3, atol=0)


def test_it_finds_the_modes() -> None:
    centers = modes(16)
    model = quantizer(16, 8, decay=0.7, l2_normalize=True)
    model.place(torch.arange(16), centers + 0.3 * torch.randn(16, 8))
    for step in range(40):
        model(mixture(centers, 256, seed=step)[None])
    similarity = model.normalize(model.codebook) @ centers.T
    assert (similarity.max(0).values > 0.99).all()


def test_the_averaged_copy_has_averaged_statistics() -> None:
    model = quantizer()
    ema = EMA(EMAConfig(decay=0.5), model)
    model(latents(0))
    before = {name: value.clone() for name, value in ema.module.state_dict().items()}
    ema.update(model, step=1000)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(ema.module.state_dict()[name], (before[name] + value) / 2)
    assert not ema.module.codebook.requires_grad
    ema.module(latents(1))
    assert not torch.equal(before["sums"], model.sums), "or else the comparison would see nothing"
