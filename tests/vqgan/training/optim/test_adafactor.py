"""Adafactor against its formulas in float64, and what its eight-bit first moment may and may not do."""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import parti.next_token.train_next_token
from tests.tiny_runs import stage_2, untrained_tokenizer
from vqgan.training.loop import TrainingLoop
from vqgan.training.optim.adafactor import Adafactor, corrected_decay, quantized

pytestmark = pytest.mark.threads

Array = NDArray[np.float64]
RATE, BETA1, BETA2 = 0.01, 0.9, 0.96
FACTORED, PLAIN = (128, 130), (127, 130)


def gradients(shape: Sequence[int], steps: int, seed: int = 0) -> list[Tensor]:
    """Rows and columns of very different size, so that a factored second moment is far from a constant."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.logspace(-6, 0, shape[0]).view(-1, *[1] * (len(shape) - 1)) if shape else torch.tensor(1.0)
    return [torch.randn(shape, generator=generator) * size * (1 + step) for step in range(steps)]


def adafactor(*parameters: nn.Parameter, beta1: float = BETA1, weight_decay: float = 0.0) -> Adafactor:
    return Adafactor([{"params": list(parameters)}], lr=RATE, betas=(beta1, BETA2), weight_decay=weight_decay)


def double(tensor: Tensor) -> Array:
    return tensor.detach().double().numpy()


def second_moments(gradients: Sequence[Tensor], factored: bool) -> Iterator[Array]:
    """The estimate of every weight's mean square after each step, from the whole past.

    The running mean is written as the weighted mean that Adam's correction makes of it: the gradient of k steps ago
    weighs beta2 ** k, and the weights are divided by their sum.
    """
    squares = [double(gradient) ** 2 for gradient in gradients]
    for step in range(len(squares)):
        weights = BETA2 ** np.arange(step, -1, -1.0)
        mean = np.asarray(np.average(squares[: step + 1], axis=0, weights=weights))
        if factored:
            mean = np.outer(mean.sum(axis=1), mean.sum(axis=0)) / mean.sum()
        yield mean


def clipped(update: Array) -> Array:
    return update / max(1.0, np.sqrt((update**2).mean()))


@pytest.mark.parametrize(("shape", "factored"), [(FACTORED, True), (PLAIN, False), ((5, 300), False)])
def test_updates_are_gradients_over_the_root_of_their_second_moment(shape: tuple[int, int], factored: bool) -> None:
    parameter = nn.Parameter(torch.zeros(shape))
    optimizer = adafactor(parameter, beta1=0.0)
    past = gradients(shape, 4)
    for gradient, moment in zip(past, second_moments(past, factored), strict=True):
        before = double(parameter)
        parameter.grad = gradient.clone()
        optimizer.step()
        expected = -RATE * clipped(double(gradient) / np.sqrt(moment))
        np.testing.assert_allclose(double(parameter) - before, expected, rtol=2e-3, atol=1e-8)
        assert torch.equal(parameter.grad, gradient), "the gradient is the caller's"


def test_only_matrices_with_both_sides_large_keep_rows_and_columns() -> None:
    shapes = {"factored": FACTORED, "narrow": PLAIN, "vector": (4096,), "scalar": (), "convolution": (128, 15, 3, 3)}
    parameters = {name: nn.Parameter(torch.zeros(shape)) for name, shape in shapes.items()}
    optimizer = adafactor(*parameters.values())
    for parameter in parameters.values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    kept = {
        name: {key: tuple(value.shape) for key, value in optimizer.state[parameter].items() if key != "step"}
        for name, parameter in parameters.items()
    }
    assert kept == {
        "factored": {"moment": FACTORED, "scale": (128, 1), "row_variance": (128, 1), "column_variance": (1, 130)},
        "narrow": {"moment": PLAIN, "scale": (127, 1), "variance": PLAIN},
        "vector": {"moment": (1, 4096), "scale": (1, 1), "variance": (1, 4096)},
        "scalar": {"moment": (1, 1), "scale": (1, 1), "variance": (1, 1)},
        "convolution": {
            "moment": (128, 135),
            "scale": (128, 1),
            "row_variance": (128, 1),
            "column_variance": (1, 135),
        },
    }


def test_a_convolution_is_trained_as_the_matrix_of_its_output_channels() -> None:
    matrix = nn.Parameter(torch.zeros(128, 144))
    convolution = nn.Parameter(torch.zeros(128, 16, 3, 3).to(memory_format=torch.channels_last))
    for parameter, optimizer in ((matrix, adafactor(matrix)), (convolution, adafactor(convolution))):
        for gradient in gradients((128, 144), 3):
            parameter.grad = gradient.view(parameter.shape).clone(memory_format=torch.preserve_format)
            optimizer.step()
    assert torch.equal(convolution.detach().reshape(128, 144), matrix)


@pytest.mark.parametrize("beta2", [0.96, 0.999])
def test_the_corrected_decay_makes_the_running_mean_of_a_constant_that_constant(beta2: float) -> None:
    assert corrected_decay(beta2, 1) == 0
    assert corrected_decay(beta2, 10_000) == pytest.approx(beta2, rel=1e-3)
    adam = average = 0.0
    for step, value in enumerate([3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0], start=1):
        adam = beta2 * adam + (1 - beta2) * value
        decay = corrected_decay(beta2, step)
        average = decay * average + (1 - decay) * value
        assert average == pytest.approx(adam / (1 - beta2**step)), "what Adam divides at the end"


def test_an_update_is_clipped_as_a_whole_and_only_when_it_is_large() -> None:
    parameter = nn.Parameter(torch.zeros(200))
    optimizer = adafactor(parameter, beta1=0.0)
    moved = []
    for size in (1.0, 1.0, 100.0, 0.1):
        before = parameter.detach().clone()
        parameter.grad = torch.full_like(parameter, size)
        optimizer.step()
        moved.append((parameter.detach() - before).square().mean().sqrt().item() / RATE)
    assert moved[:3] == pytest.approx([1.0, 1.0, 1.0], rel=1e-4), "without clipping the third were about 1.7"
    assert moved[3] < 0.01


@pytest.mark.parametrize("shape", [FACTORED, (300,), ()])
def test_the_moment_is_a_running_mean_of_clipped_updates_and_the_decay_is_decoupled(shape: tuple[int, ...]) -> None:
    parameter = nn.Parameter(torch.full(shape, 0.5))
    optimizer = adafactor(parameter, weight_decay=0.2)
    past = [gradient + 0.1 for gradient in gradients(shape, 4)]
    rows = (128, 130) if shape == FACTORED else (1, -1)
    moment = np.zeros(parameter.view(rows).shape)
    for gradient, variance in zip(past, second_moments(past, factored=shape == FACTORED), strict=True):
        before = double(parameter)
        parameter.grad = gradient.clone()
        optimizer.step()
        update = clipped(double(gradient) / np.sqrt(variance)).reshape(moment.shape)
        exact = BETA1 * moment + (1 - BETA1) * update
        expected = before * (1 - RATE * 0.2) - RATE * exact.reshape(shape)
        np.testing.assert_allclose(double(parameter), expected, rtol=1e-5, atol=1e-6)
        state = optimizer.state[parameter]
        moment = double(state["moment"]) * double(state["scale"])  # what is left of it for the next step
        assert state["moment"].dtype == torch.int8
        assert np.all(np.abs(moment - exact) <= np.abs(exact).max(axis=1, keepdims=True) / 127 * 1.001)


def test_rounding_is_unbiased_and_off_by_less_than_one_quantum() -> None:
    generator = torch.Generator().manual_seed(0)
    size = torch.tensor([[1e-20], [1e-3], [0.0], [1e5]])
    moment = torch.randn(4, 1001, generator=generator) * size
    draws = []
    for _ in range(400):
        whole, scale = quantized(moment.clone(), generator)
        draws.append(whole.double() * scale.double())
    quantum = moment.abs().amax(1, keepdim=True).double() / 127
    torch.testing.assert_close(scale.double(), quantum, rtol=1e-6, atol=0)
    generated = torch.stack(draws)
    assert torch.all((generated - moment).abs() <= quantum * 1.0001)
    assert torch.equal(generated[:, 2], torch.zeros(400, 1001)), "a row of zeros stays one"
    # The error of one draw has a deviation of at most half a quantum: of the mean of all draws of a row, 0.0008.
    error = (generated.mean(0) - moment)[[0, 1, 3]] / quantum[[0, 1, 3]]
    assert error.mean(1).abs().max() < 0.004
    assert error.abs().max() < 0.15, "and of each number's, 0.025"


def test_the_largest_numbers_never_leave_the_range() -> None:
    """Divided by the scale they are 127 give or take a rounding, and noise comes on top: 128 would become -128."""
    moment = torch.linspace(1.0, 2.0, 4096).view(-1, 1).expand(-1, 256)
    for sign in (1, -1):
        whole, _ = quantized(sign * moment, torch.Generator().manual_seed(0))
        assert set(whole.unique().tolist()) <= {sign * 126, sign * 127}


def test_steps_far_below_a_quantum_are_not_lost() -> None:
    """A number of a hundredth of a quantum beside a large one: nearest rounding would always give zero."""
    moment = torch.full((1, 20_000), 0.01)
    moment[0, 0] = 127.0
    whole, _ = quantized(moment, torch.Generator().manual_seed(0))
    assert whole[0, 1:].float().mean().item() == pytest.approx(0.01, rel=0.3)


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(128, 136), nn.ReLU(), nn.Linear(136, 128), nn.ReLU(), nn.Linear(128, 3))


def trained(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> float:
    """The last loss of `model` on what another network says."""
    teacher, loss = network(seed=1), torch.tensor(0.0)
    for step in steps:
        inputs = torch.randn(64, 128, generator=torch.Generator().manual_seed(step))
        loss = (model(inputs) - 10 * teacher(inputs)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


def test_it_trains_as_well_as_adamw() -> None:
    losses = {}
    for name in ("adafactor", "adamw"):
        model = network()
        groups = [{"params": list(model.parameters())}]
        kinds = {"adafactor": Adafactor, "adamw": torch.optim.AdamW}
        optimizer = kinds[name](groups, lr=2e-3, betas=(BETA1, BETA2), weight_decay=0.0)
        first = trained(model, optimizer, range(1))
        losses[name] = trained(model, optimizer, range(1, 150))
    assert losses["adafactor"] < 1.15 * losses["adamw"]
    assert losses["adafactor"] < 0.25 * first


def parameters_of(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_resumed_equals_uninterrupted_whatever_the_global_random_state() -> None:
    straight = network()
    trained(straight, adafactor(*straight.parameters()), range(6))

    stopped = network()
    first = adafactor(*stopped.parameters())
    trained(stopped, first, range(3))
    file = io.BytesIO()
    torch.save({"model": stopped.state_dict(), "optimizer": first.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)

    torch.manual_seed(999)
    resumed = network(seed=5)
    resumed.load_state_dict(saved["model"])
    torch.manual_seed(4711)
    second = adafactor(*resumed.parameters())
    second.load_state_dict(saved["optimizer"])
    trained(resumed, second, range(3, 6))
    assert torch.equal(parameters_of(resumed), parameters_of(straight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loading_keeps_every_dtype_and_shares_no_memory(dtype: torch.dtype) -> None:
    first, second = (nn.Parameter(torch.zeros(FACTORED, dtype=dtype)) for _ in range(2))
    one, two = adafactor(first), adafactor(second)
    for parameter in (first, second):
        parameter.grad = gradients(FACTORED, 1)[0].to(dtype)
    one.step()
    two.load_state_dict(one.state_dict())
    dtypes = {name: value.dtype for name, value in two.state[second].items() if isinstance(value, Tensor)}
    assert dtypes == {
        "moment": torch.int8,
        "scale": torch.float32,
        "row_variance": torch.float32,
        "column_variance": torch.float32,
    }
    for name, value in one.state[first].items():
        if isinstance(value, Tensor):
            assert torch.equal(two.state[second][name], value)
    before = two.state[second]["row_variance"].clone()
    one.step()
    assert torch.equal(two.state[second]["row_variance"], before)


def test_each_parameter_and_each_step_has_its_own_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []

    def watched(moment: Tensor, generator: torch.Generator, part: Any) -> tuple[Tensor, Tensor]:
        seeds.append(generator.initial_seed())
        return quantized(moment, generator, part)

    monkeypatch.setattr("vqgan.training.optim.adafactor.quantized", watched)
    parameters = [nn.Parameter(torch.zeros(4)) for _ in range(3)]
    groups = [{"params": parameters[:1]}, {"params": parameters[1:]}]
    optimizer = Adafactor(groups, lr=RATE, betas=(BETA1, BETA2))
    for step in range(3):
        for parameter in parameters[step % 2 :]:  # a parameter may miss a step
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        optimizer.zero_grad()
    assert len(seeds) == len(set(seeds)) == 8


def test_one_byte_a_weight() -> None:
    layer = nn.Linear(1024, 1024)
    optimizer = adafactor(*layer.parameters())
    for parameter in layer.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    states = (value for state in optimizer.state.values() for value in state.values())
    size = sum(value.nbytes for value in states if isinstance(value, Tensor))
    assert size / sum(parameter.numel() for parameter in layer.parameters()) < 1.02


ADAFACTOR = {
    "task.optimizer": {"kind": "adafactor", "learning_rate": 1e-2, "betas": [BETA1, BETA2], "clip_norm": 1.0},
    "model.width": 128,
    "model.mlp_width": 128,
    "task.sampled_prompts": 0,
    "loop.steps": 5,
}


def final_state(run: Path) -> dict[str, Any]:
    return torch.load(run / "checkpoints" / "step-0000005" / "state.pt", weights_only=True)


def test_a_stopped_run_of_stage_2_gives_the_weights_of_one_that_never_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = untrained_tokenizer(tmp_path / "tokenizer")
    straight, stopped = (stage_2(tmp_path / name, tokenizer, **ADAFACTOR) for name in ("straight", "stopped"))
    assert parti.next_token.train_next_token.train(straight)

    monkeypatch.setattr(TrainingLoop, "_should_stop", lambda _loop, done: done == 2)
    assert parti.next_token.train_next_token.train(stopped) is False
    monkeypatch.setattr(TrainingLoop, "_should_stop", lambda _loop, _done: False)
    torch.manual_seed(12345)
    assert parti.next_token.train_next_token.train(stopped) is True

    one, other = final_state(tmp_path / "straight"), final_state(tmp_path / "stopped")
    torch.testing.assert_close(one["generator"], other["generator"], rtol=0, atol=0)
    moments = one["optimizer"]["optimizer"]["state"]
    torch.testing.assert_close(moments, other["optimizer"]["optimizer"]["state"], rtol=0, atol=0)
    assert {state["step"] for state in moments.values()} == {5}
    assert any("row_variance" in state for state in moments.values())
