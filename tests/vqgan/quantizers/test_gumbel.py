"""The Gumbel relaxation: the formulas of DALL-E, its schedules, and gradients against autograd of the formula."""

import math

import pytest
import torch
from torch import Tensor

from tests.vqgan.quantizers.mixtures import mixture, modes, modes_with_a_code_of_their_own
from vqgan.config.schema import ConfigError, validate
from vqgan.quantizers import AnnealingConfig, GumbelConfig, GumbelQuantizer

pytestmark = pytest.mark.threads


def quantizer(codes: int = 20, *, straight_through: bool = False) -> GumbelQuantizer:
    torch.manual_seed(0)
    config = GumbelConfig(codebook_size=codes, latent_dim=6, code_dim=5, straight_through=straight_through)
    return GumbelQuantizer(config)


def latents() -> Tensor:
    return 3 * torch.randn(2, 7, 6, generator=torch.Generator().manual_seed(1))


def written_out(model: GumbelQuantizer, x: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Latents and loss, operation by operation."""
    logits = x @ model.proj.weight.T + model.proj.bias
    torch.manual_seed(seed)
    noise = -torch.empty_like(logits).exponential_().log()
    soft = ((logits + noise) / model.temperature).softmax(-1)
    weights = soft
    if model.config.straight_through:
        hard = torch.nn.functional.one_hot(soft.argmax(-1), logits.shape[-1]).float()
        weights = hard - soft.detach() + soft
    q = logits.softmax(-1)
    kl = (q * (logits.shape[-1] * q).log()).sum(-1).mean()
    return weights @ model.codebook, model.kl_weight * kl


@pytest.mark.parametrize("straight_through", [False, True])
@pytest.mark.parametrize("step", [3_000, 100_000])
def test_the_sample_the_loss_and_all_gradients_are_the_formulas(straight_through: bool, step: int) -> None:
    model = quantizer(straight_through=straight_through)
    model.at_step(step, 1_200_000)
    upstream = torch.randn(2, 7, 5)
    gradients = []
    torch.manual_seed(4)
    result = model(x := latents().requires_grad_())
    wanted = written_out(model, y := latents().requires_grad_(), seed=4)
    torch.testing.assert_close(result.latents, wanted[0])
    torch.testing.assert_close(result.loss, wanted[1])
    assert result.loss > 1
    for read, loss, start in ((result.latents, result.loss, x), (*wanted, y)):
        parameters = [start, model.codebook, *model.proj.parameters()]
        gradients.append(torch.autograd.grad((read * upstream).sum() + loss, parameters))
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
        assert theirs.abs().max() > 1e-3


def test_straight_through_decodes_codes() -> None:
    model = quantizer(straight_through=True)
    distances = torch.cdist(model(latents()).latents.flatten(0, 1), model.codebook)
    assert distances.min(-1).values.max() < 1e-5


def test_a_drawn_zero_is_a_large_noise_and_no_infinite_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model = quantizer()
    monkeypatch.setattr(Tensor, "exponential_", Tensor.zero_)
    # The noise is then the same for every code, and cancels.
    expected = (model._logits(latents()) / model.temperature).softmax(-1) @ model.codebook
    torch.testing.assert_close(model(latents()).latents, expected, rtol=1e-3, atol=1e-4)


def test_without_codes_the_decoder_reads_the_mean_of_the_codebook() -> None:
    model = quantizer()
    expected = torch.einsum(
        "bnv,ve->bne", (latents() @ model.proj.weight.T + model.proj.bias).softmax(2), model.codebook
    )
    torch.testing.assert_close(model.unquantized(latents()), expected)


def test_codes_are_the_largest_logits_without_noise() -> None:
    model = quantizer()
    expected = (latents() @ model.proj.weight.T + model.proj.bias).argmax(-1)
    for _ in range(3):
        assert torch.equal(model(latents()).codes, expected)
    assert not torch.equal(model(latents()).latents, model(latents()).latents), "the sample itself is noisy"


def test_samples_are_distributed_as_the_softmax_of_the_logits() -> None:
    model = quantizer(codes=4, straight_through=True)
    x = latents()[:1, :1]
    q = (x @ model.proj.weight.T + model.proj.bias).softmax(-1).flatten()
    generated = model(x.expand(1, 20_000, 6)).latents[0]
    shares = torch.cdist(generated, model.codebook).argmin(-1).bincount(minlength=4) / 20_000
    torch.testing.assert_close(shares, q, rtol=0, atol=0.015)


def test_kl_of_certain_and_of_uniform_positions() -> None:
    model = quantizer()
    model.proj.weight.data.zero_()
    assert model(latents()).stats["kl"].item() == pytest.approx(0, abs=1e-6)
    model.proj.bias.data[3] = 1e4
    assert model(latents()).stats["kl"].item() == pytest.approx(math.log(20), rel=1e-6)


def test_schedules_are_those_of_the_paper() -> None:
    model = quantizer()
    assert (model.temperature, model.kl_weight) == (1.0, 0.0), "before the first step"
    metrics = {}
    for step in (0, 2_500, 5_000, 75_000, 150_000, 1_000_000):
        model.at_step(step, 1_200_000)
        metrics[step] = (model.temperature, model.kl_weight)
    assert metrics[0] == (1.0, 0.0)
    assert metrics[2_500][1] == pytest.approx(3.3)
    assert metrics[5_000][1] == pytest.approx(6.6)
    assert metrics[75_000] == pytest.approx(((1 + 1 / 16) / 2, 6.6))
    assert metrics[150_000] == metrics[1_000_000] == pytest.approx((1 / 16, 6.6))
    stats = model(latents()).stats
    assert (stats["temperature"].item(), stats["kl_weight"].item()) == pytest.approx((1 / 16, 6.6))


def test_a_span_may_be_a_share_of_the_run() -> None:
    annealing = AnnealingConfig(start=2.0, end=1.0, over="25%")
    assert [annealing.value(step, 400) for step in (0, 50, 100, 300)] == pytest.approx([2, 1.5, 1, 1])
    assert AnnealingConfig(start=2.0, end=1.0, over=0).value(0, 10) == 1.0
    assert [AnnealingConfig(start=2.0, end=1.0, over=1).value(step, 10) for step in (0, 1)] == [2.0, 1.0]


def test_logits_and_codes_begin_at_unit_variance() -> None:
    torch.manual_seed(0)
    model = GumbelQuantizer(GumbelConfig(codebook_size=500, latent_dim=400, code_dim=16))
    assert model._logits(torch.randn(2, 50, 400)).std().item() == pytest.approx(1, rel=0.05)
    assert not model.proj.bias.any()
    assert model.codebook.std().item() == pytest.approx(1, rel=0.05)


def test_a_temperature_of_zero_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"a temperature is above 0, received 1\.0 to 0\.0; end the schedule at"):
        validate(GumbelConfig, {"temperature": {"start": 1.0, "end": 0.0, "over": "5%"}}, "the test")


def test_the_weight_of_the_kl_in_the_papers_elbo() -> None:
    """With a weight of 1/192: beta times the sum over 32 x 32 positions, over the 256 x 256 x 3 values."""
    model = quantizer()
    model.at_step(5_000, 1_200_000)
    x = torch.randn(1, 32 * 32, 6, generator=torch.Generator().manual_seed(0))
    q = (x @ model.proj.weight.T + model.proj.bias).softmax(-1)
    kl = (q * (20 * q).log()).sum()
    assert (model(x).loss / 192).item() == pytest.approx((6.6 * kl / (256 * 256 * 3)).item(), rel=1e-5)


def test_what_training_keeps_is_two_tensors_as_large_as_the_logits() -> None:
    model = GumbelQuantizer(GumbelConfig(codebook_size=1000, latent_dim=4, code_dim=3))
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = model(torch.randn(2, 50, 4))
    assert result.loss.requires_grad
    assert 2 * 100_000 <= sum(kept.values()) < 2.3 * 100_000


def test_it_learns_a_code_for_every_mode() -> None:
    centers = modes(8, 6)
    model = quantizer(codes=32)
    model.config = model.config.model_copy(update={"temperature": AnnealingConfig(start=1.0, end=0.0625, over="80%")})
    decoder = torch.nn.Linear(5, 6)
    optimizer = torch.optim.Adam([*model.parameters(), *decoder.parameters()], lr=0.02)
    for step in range(250):
        model.at_step(step, 250)
        x = 3 * mixture(centers, 256, seed=step)[None]
        result = model(x)
        loss = (decoder(result.latents) - x).square().mean() + 0.001 * result.loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    labels = torch.arange(8).repeat_interleave(20)
    codes = model.eval().encode(3 * centers[labels][None])
    assert modes_with_a_code_of_their_own(codes[0], labels) == 1
    assert (decoder(model.embed(codes)) - 3 * centers[labels]).square().mean() < 0.1
