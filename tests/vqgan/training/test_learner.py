"""What every objective has by its learner: skipped steps move nothing; any precision, and compiled layers, train."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vqgan.discriminator_trainer
import vqgan.train_tokenizer
from tests.tiny_runs import stage_1
from tests.two_processes import run_in_processes
from tests.vqgan.training.parallel.equal_steps import OBJECTIVES, larger, parts_of, taken, uneven_pairs
from vqgan.config.schema import ConfigError
from vqgan.training.learner import Learner, LearnerConfig
from vqgan.training.objective import Objective
from vqgan.training.optim.ema import EMA
from vqgan.training.parallel.distributed import build_accelerator

_ONE_EACH = [name for name in OBJECTIVES if name not in ("nearest_ema", "residual", "finite_scalar", "lookup_free")]


def objective_of(name: str) -> Objective:  # type: ignore[type-arg]
    torch.manual_seed(0)
    task = OBJECTIVES[name][0]()
    assert isinstance(task, Objective)
    return task


def set_for_all(monkeypatch: pytest.MonkeyPatch, **settings: Any) -> None:
    """From now on learners are built with these settings."""
    build = Learner.__init__

    def changed(self: Learner[Any], config: LearnerConfig, *others: Any, **named: Any) -> None:
        build(self, config.model_copy(update=settings), *others, **named)

    monkeypatch.setattr(Learner, "__init__", changed)


def state_of(task: Objective) -> dict[str, Tensor]:  # type: ignore[type-arg]
    """Weights and averages, by the names of a checkpoint."""
    return {
        f"{part}.{name}": weight.clone()
        for part, stateful in task.stateful().items()
        if isinstance(stateful, nn.Module | EMA)
        for name, weight in stateful.state_dict().items()
    }


@pytest.mark.parametrize("name", _ONE_EACH)
def test_the_average_stays_where_a_step_is_skipped_and_moves_where_it_is_not(name: str) -> None:
    task, side = objective_of(name), OBJECTIVES[name][1]
    whole = larger(uneven_pairs(), side)
    before = state_of(task)
    broken = task.accelerator.backward
    task.accelerator.backward = lambda loss: broken(loss * float("nan"))  # type: ignore[method-assign]
    metrics = task.train_step([whole], 2)
    assert all(value.item() for key, value in metrics.items() if key.endswith("skipped"))
    learned = {f"{part}.{key}" for part, network in task.stateful().items() if isinstance(network, nn.Module)
               for key, _ in network.named_parameters()}  # fmt: skip
    learned |= {f"ema.{key}" for key, _ in task.ema.module.named_parameters()}
    after = state_of(task)
    assert [key for key in learned if not torch.equal(before[key], after[key])] == []
    task.accelerator.backward = broken  # type: ignore[method-assign]
    assert not task.train_step([whole], 3)["skipped"]
    after = state_of(task)
    assert any(not torch.equal(before[key], after[key]) for key in learned if key.startswith("ema."))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("name", _ONE_EACH)
def test_16_bits_train_and_fp16_scales_losses_until_nothing_overflows(
    name: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = larger(uneven_pairs(), OBJECTIVES[name][1])
    exact = objective_of(name).train_step(parts_of(whole, 2), 0)["loss"].item()
    set_for_all(monkeypatch, precision=precision)
    task = objective_of(name)
    trained = 0
    for step in range(16):
        metrics = task.train_step(parts_of(whole, 2), step)
        if step == 0:
            assert metrics["loss"].item() == pytest.approx(exact, rel=0.05)
        trained += not any(value.item() for key, value in metrics.items() if key.endswith("skipped"))
        if trained == 2:
            break
    assert trained == 2, "the scale has found its size"
    assert ("loss_scale" in metrics) is (precision == "fp16")


def compiled_steps(names: str) -> int:
    """The number of objectives of which a compiled step is another, or has nothing compiled; says which."""
    wrong = 0
    for name in names.split():
        build, side = OBJECTIVES[name]
        plain = taken(build, [larger(uneven_pairs(), side)])
        with pytest.MonkeyPatch.context() as patch:
            set_for_all(patch, compile_layers=True)
            compiled: list[nn.Module] = []
            compile_layer = nn.Module.compile

            def counted(layer: nn.Module) -> None:
                compiled.append(layer)  # noqa: B023 - called in this turn alone
                compile_layer(layer, backend="aot_eager")  # noqa: B023 - what is traced is tested, not generated code

            patch.setattr(nn.Module, "compile", counted)
            differences = taken(build, [larger(uneven_pairs(), side)]).differences(plain)
        sys.stdout.write(f"{name}: {len(compiled)} compiled, {differences}\n")
        wrong += bool(differences) or not compiled
    return wrong


@pytest.mark.slow
def test_compiled_layers_take_the_same_step(tmp_path: Path) -> None:
    """In a process of its own: the shape checks of the tests cannot be traced."""
    said = tmp_path / "said.txt"
    assert run_in_processes(compiled_steps, " ".join(_ONE_EACH), said=said, count=1) == [0], said.read_text()


def test_an_adaptive_weight_is_refused_where_weights_are_sharded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vqgan.discriminator_trainer, "is_sharded", lambda _: True)
    config = stage_1(Path("nowhere"), **{"task.adversarial.adaptive": True})
    with pytest.raises(ConfigError, match=r"task\.adversarial\.adaptive is true.*set it to false") as refused:
        vqgan.train_tokenizer.build_task(config, build_accelerator())
    assert "\n" not in str(refused.value)
