"""benchmarks/training_step.py: the parts are those of the real step, every moment counts once, and nothing is left."""

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import vqgan.discriminator_trainer
from tests.fake_clock import FakeClock

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CONFIG = """
data: {source: {kind: shapes}, transform: {image_size: 32}, batch_size: 4}
model:
  kind: vit_vqgan
  image_size: 32
  patch_size: 8
  encoder: {depth: 1, width: 16, heads: 2, mlp_width: 16}
  decoder: {depth: 1, width: 16, heads: 2, mlp_width: 16}
  quantizer: {codebook_size: 16, code_dim: 4}
task:
  perceptual: {backbone: squeeze, weights: pretrained}
  adversarial:
    adaptive: true
    start: 50%
    lecam_weight: 0.01
    r1_every: 4
    discriminator: {kind: stylegan2, channels: [4, 4, 4, 4]}
  codebook_maintenance: {unquantized: 10%, restart_every: 10}
loop: {steps: 100}
"""


@pytest.fixture
def benchmark_(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))  # as for a script: it imports its neighbor by name
    threads = torch.get_num_threads()
    yield importlib.import_module("training_step")
    torch.set_num_threads(threads)


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(CONFIG)
    return path


def small_task(module: ModuleType, config_file: Path) -> tuple[Any, Any, list[Any]]:
    config = module.load_config(module.TrainVQGANConfig, config_file)
    config = module.in_measure(config, "fp32", None)
    module.seed_everything(0, 0)
    task = module.build_task(config, module.build_accelerator())
    images = torch.rand(4, 3, 32, 32) * 2 - 1
    return config, task, [module.Batch(images, captions=[""] * 4, names=[""] * 4)]


@pytest.fixture
def clock(benchmark_: ModuleType, monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    assert benchmark_.Profiler.__module__ == "profiler"
    clock = FakeClock()
    monkeypatch.setattr("profiler.time.perf_counter", clock)
    return clock


def test_a_moment_counts_for_the_innermost_label(benchmark_: ModuleType, clock: FakeClock) -> None:
    profiler = benchmark_.Profiler(lambda: None)
    clock.pass_by(0.01)
    with profiler.time("outer"):
        clock.pass_by(0.02)
        with profiler.time("inner"):
            clock.pass_by(0.04)
        clock.pass_by(0.08)
    assert profiler.seconds == pytest.approx({"rest": 0.01, "outer": 0.1, "inner": 0.04})


def test_a_backward_pass_is_divided_where_the_gradient_arrives(benchmark_: ModuleType, clock: FakeClock) -> None:
    class Slow(torch.autograd.Function):
        @staticmethod
        def forward(_: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(_: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            clock.pass_by(0.03)
            return gradient

    profiler = benchmark_.Profiler(lambda: None)
    x = torch.ones(1, requires_grad=True)
    first = Slow.apply(x)
    profiler.reach_at(first, "first")
    second = Slow.apply(Slow.apply(first))
    profiler.reach_at((second, None), "second")
    with profiler.backward():
        second.sum().backward()
    assert profiler.seconds == pytest.approx({"rest": 0, "first": 0.03, "second": 0.06, "other losses": 0})


def test_watching_changes_neither_the_step_nor_the_task(benchmark_: ModuleType, config_file: Path) -> None:
    """The same weights bit for bit, each kind of part seen, and the encoder run once for both players."""
    weights = []
    for watch in (False, True):
        config, task, batches = small_task(benchmark_, config_file)
        kinds = benchmark_.kinds_of_steps(config)
        profiler = benchmark_.Profiler(lambda: None)
        runs: list[torch.nn.Module] = []
        networks = [task.autoencoder.encoder, task.autoencoder.decoder]
        for network in networks:
            network.register_forward_hook(lambda module, *_, runs=runs: runs.append(module))
        for step in (kinds.ordinary, kinds.r1, kinds.maintenance):
            if watch:
                with benchmark_.watched(task, profiler):
                    task.train_step(batches, step)
            else:
                task.train_step(batches, step)
        assert runs == networks * 3
        parts = (task.autoencoder, task.discriminator_trainer.discriminator)
        weights.append([parameter.clone() for part in parts for parameter in part.parameters()])
    assert all(torch.equal(alone, watched) for alone, watched in zip(*weights, strict=True))
    assert set(profiler.seconds) == set(benchmark_.PARTS)
    for owner in (
        task.autoencoder.encoder,
        task.discriminator_trainer.discriminator,
        task.maintenance,
        task.ema,
        task.discriminator_trainer.optimizer,
    ):
        assert not {"forward", "update", "step"} & set(vars(owner))
    assert vqgan.discriminator_trainer.r1_penalty.__module__ == "vqgan.losses.adversarial"


def test_kinds_of_steps_are_what_they_say(benchmark_: ModuleType, config_file: Path) -> None:
    config, _, _ = small_task(benchmark_, config_file)
    kinds = benchmark_.kinds_of_steps(config)
    assert min(kinds.ordinary, kinds.r1, kinds.maintenance) >= 50  # from there on both players play
    assert kinds.ordinary % 4
    assert kinds.ordinary % 10
    assert (kinds.r1 % 4, kinds.maintenance % 10) == (0, 0)
    assert (kinds.r1_share, kinds.care_share) == (1 / 4, 1 / 10)
    penalized = config.task.adversarial.model_copy(update={"r1_every": 1})
    always = config.model_copy(update={"task": config.task.model_copy(update={"adversarial": penalized})})
    with pytest.raises(benchmark_.ConfigError, match="r1_every"):
        benchmark_.kinds_of_steps(always)


def test_the_table(
    benchmark_: ModuleType, config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "metrics.json"
    small = ["--config", str(config_file), "--batch=2", "--rounds=3", "--precisions", "fp32", "--json", str(out)]
    assert benchmark_.main([*small, "--task.adversarial.lecam_weight", "0"]) == 0
    record = json.loads(out.read_text())
    (table,) = record["tables"]
    rows = {row["part"]: row for row in table["rows"]}
    assert set(rows) == set(benchmark_.PARTS) - {"LeCam"}
    assert sum(row["share"] for row in rows.values()) == pytest.approx(1)
    r1 = rows["R1: gradient"]
    assert r1["amortized"] == pytest.approx(r1["milliseconds"] / 4)
    whole = sum(row["amortized"] for row in rows.values())
    assert table["images_per_second"] == pytest.approx(2 / whole * 1e3)
    printed = capsys.readouterr().out
    assert all(part in printed for part in rows)
