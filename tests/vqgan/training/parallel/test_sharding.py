"""FSDP2 in two processes gives the run of one; its checkpoints move to other numbers of processes."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from safetensors.torch import load_file

import parti.next_token.train_next_token
import vqgan.train_tokenizer
from parti.next_token.next_token_task import NextTokenTask
from tests.tiny_runs import stage_1, stage_2, untrained_tokenizer
from tests.two_processes import FSDP2, run_in_processes
from tests.vqgan.training.parallel.sharded_runs import RUNS, config_of, one_of_several, poison, stop_after
from tests.vqgan.training.parallel.test_distributed import assert_same_run
from vqgan.config.schema import ConfigError
from vqgan.data.batch import Batch
from vqgan.data.loader import DataPipeline
from vqgan.training import loop
from vqgan.training.loop import TrainingLoop
from vqgan.training.parallel.sharding import requested_sharding
from vqgan.training.run_folder import RunFolder

_CONFIGS = sorted((Path(__file__).parents[4] / "configs" / "accelerate").glob("*.yaml"))
_TOLERANCES = {"adamw": 2e-4, "adafactor": 2e-4, "guarded": 2e-4, "bf16": 2e-3, "fp16": 2e-2, "muon": 1e-2}
"""muon orthogonalizes in bf16, where the order of sums shows. fp16 rounds, and its text loss is a mean over the text of
each process."""
_UNSEEN = ("key_value.bias", "qkv.bias")
"""Softmax does not see the keys' part of these biases: its gradient is rounding, which Adafactor scales up."""


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes left sharded runs; the last was stopped after two steps."""
    folder = tmp_path_factory.mktemp("two")
    untrained_tokenizer(folder / "tokenizer")
    said = folder / "said.txt"
    codes = run_in_processes(one_of_several, folder, *_TOLERANCES, "moved", said=said, environment=FSDP2)
    assert codes == [0, 0], said.read_text()
    assert "Warning" not in said.read_text(), said.read_text()
    return folder


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same runs in one process."""
    folder = tmp_path_factory.mktemp("one")
    untrained_tokenizer(folder / "tokenizer")
    for name in _TOLERANCES:
        with pytest.MonkeyPatch.context() as patch:
            if name == "guarded":
                patch.setattr(NextTokenTask, "train_step", NextTokenTask.train_step)  # given back afterwards
                poison((3, 4), rank=0)
            assert parti.next_token.train_next_token.train(config_of(folder, name))
    return folder


@pytest.mark.parametrize("name", _TOLERANCES)
def test_sharded_runs_are_those_of_one_process(name: str, two: Path, one: Path) -> None:
    assert_same_run(two / name, one / name, [], _TOLERANCES[name])
    shipped, expected = (load_file(folder / name / "model" / "model.safetensors") for folder in (two, one))
    assert shipped.keys() == expected.keys()
    for key, weight in expected.items():
        if name == "adafactor" and key.endswith(_UNSEEN):
            continue
        torch.testing.assert_close(shipped[key], weight, rtol=0, atol=_TOLERANCES[name], msg=key)
    assert (two / name / "samples" / "step-0000006.png").read_bytes()


@pytest.mark.parametrize(("limit", "batches", "stand_ins"), [(6, 1, 0), (7, 2, 2), (5, 1, 0), (4, 1, 1), (1, 1, 2)])
def test_every_process_has_as_many_val_batches(limit: int, batches: int, stand_ins: int, tmp_path: Path) -> None:
    data = DataPipeline(stage_1(tmp_path, **{"data.val_limit": limit}).data, 0)
    parts = [list(data.val_batches(rank, 3, batch_size=2, even=True)) for rank in range(3)]
    assert [len(part) for part in parts] == [batches] * 3
    repeated = [[batch for batch in part if batch.repeated] for part in parts]
    assert [len(part) for part in repeated] == [0] * (3 - stand_ins) + [1] * stand_ins
    for rank, part in enumerate(parts):
        counted = [batch.names for batch in part if not batch.repeated]
        assert counted == [batch.names for batch in data.val_batches(rank, 3, batch_size=2)]


def test_a_repeated_batch_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def with_stand_in(self: DataPipeline, *arguments: Any, **named: Any) -> Iterator[Batch]:
        yield from val_batches(self, *arguments, **named)
        yield replace(self.preview_batch(1), repeated=True)

    tokenizer = untrained_tokenizer(tmp_path / "tokenizer")
    runs = [stage_2(tmp_path / name, tokenizer, **{"loop.steps": 1}) for name in ("plain", "with-stand-in")]
    assert parti.next_token.train_next_token.train(runs[0])
    val_batches = DataPipeline.val_batches
    monkeypatch.setattr(DataPipeline, "val_batches", with_stand_in)
    assert parti.next_token.train_next_token.train(runs[1])
    metrics = [_metrics(Path(run.run_dir), "nats_per_code") for run in runs]
    assert metrics[0] == metrics[1] != []


def test_all_processes_skip_and_go_back_when_one_has_no_finite_gradient(two: Path) -> None:
    events = [record for record in RunFolder(two / "guarded").read_metrics() if record.get("event") == "rolled_back"]
    assert [(event["from"], event["to"]) for event in events] == [(5, 3)]


def test_each_process_writes_its_part_and_nothing_is_there_twice(two: Path) -> None:
    checkpoint = two / "adamw" / "checkpoints" / "step-0000006"
    parts = [load_file(path) for path in sorted(checkpoint.glob("shard-*.safetensors"))]
    assert len(parts) == 2
    shipped = load_file(two / "adamw" / "model" / "model.safetensors")
    for kind in ("generator", "ema"):
        rows = [sum(len(part[key]) for part in parts if key in part) for key in (f"{kind}.{name}" for name in shipped)]
        assert rows == [len(weight) for weight in shipped.values()]
    assert not any(isinstance(value, torch.Tensor) for value in _state(checkpoint)["generator"].values())
    named = {line.split("  ")[1] for line in (checkpoint / "SHA256SUMS").read_text().splitlines()}
    assert named == {path.name for path in checkpoint.iterdir()} - {"SHA256SUMS"}


def test_a_run_goes_on_in_one_process_and_then_again_in_two_which_end_clearly_when_one_dies(
    two: Path, one: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_STEPS_BETWEEN_AGREEING_TO_STOP", 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingLoop, "_should_stop", TrainingLoop._should_stop)  # given back afterwards
        stop_after(4)
        assert not parti.next_token.train_next_token.train(config_of(two, "moved"))
    said = two / "said-later.txt"
    codes = run_in_processes(one_of_several, two, "moved", "killed", said=said, environment=FSDP2)

    assert codes == [2, -9], said.read_text()
    lines = [line for line in said.read_text().splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert lines[0].startswith("error: process 0 of 2 ends, as another has ended or does not answer (")
    assert RunFolder(two / "killed").checkpoints.joinpath("step-0000002").is_dir()
    assert RUNS["moved"] == RUNS["adafactor"]
    assert_same_run(two / "moved", one / "adafactor", [], 2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [True, False])
def test_compiled_layers_give_the_run_of_eager_ones(sharded: bool, one: Path, tmp_path: Path) -> None:
    untrained_tokenizer(tmp_path / "tokenizer")
    environment = FSDP2 if sharded else {}
    said = tmp_path / "said"
    codes = run_in_processes(one_of_several, tmp_path, "compiled", said=said, environment=environment, seconds=900)
    assert codes == [0, 0], said.read_text()
    records, expected = (_losses(folder / name) for folder, name in ((tmp_path, "compiled"), (one, "adamw")))
    assert records == pytest.approx(expected[:2], abs=2e-4)
    shipped = load_file(tmp_path / "compiled" / "model" / "model.safetensors")
    assert shipped.keys() == load_file(one / "adamw" / "model" / "model.safetensors").keys()


@pytest.mark.slow
def test_hybrid_sharding_in_four_processes_is_the_run_of_one(one: Path, tmp_path: Path) -> None:
    untrained_tokenizer(tmp_path / "tokenizer")
    said, hybrid = tmp_path / "said", FSDP2 | {"PARALLELISM_CONFIG_DP_REPLICATE_SIZE": "2"}
    codes = run_in_processes(one_of_several, tmp_path, "adafactor", said=said, environment=hybrid, count=4)
    assert codes == [0] * 4, said.read_text()
    assert_same_run(tmp_path / "adafactor", one / "adafactor", [], 2e-4)


@pytest.mark.parametrize("path", _CONFIGS, ids=lambda path: path.stem)
def test_shipped_accelerate_configs_launch_what_they_say(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = path.read_text()
    assert f"--config_file configs/accelerate/{path.name} " in text.partition("compute_environment")[0]
    arguments = launch_command_parser().parse_args(["--config_file", str(path), "train.py"])
    arguments, _, _ = _validate_launch_command(arguments)
    environment = prepare_multi_gpu_env(arguments)
    assert environment["ACCELERATE_MIXED_PRECISION"] == "no"
    assert (environment.get("ACCELERATE_USE_FSDP") == "true") is path.stem.startswith("fsdp2")
    if "ACCELERATE_USE_FSDP" in environment:
        assert environment["FSDP_VERSION"] == "2"
        for name, value in environment.items():
            if name.startswith(("FSDP", "ACCELERATE_USE_FSDP", "PARALLELISM")):
                monkeypatch.setenv(name, value)
        assert requested_sharding(Accelerator(cpu=True)) is None  # one process has nothing to shard with


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"FSDP_VERSION": "1"}, "set fsdp_version to 2"),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, r"model\.checkpoint_activations to true"),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, "set it to false in the accelerate config"),
    ],
)
def test_what_is_not_read_of_an_accelerate_config_is_an_error(
    setting: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (FSDP2 | setting).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        requested_sharding(Accelerator(cpu=True))


def test_stage_1_in_fp16_scales_the_loss_of_each_player_and_its_overflows_are_no_divergence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"loop.log_every": 1, "task.optimizer": {"kind": "adamw", "learning_rate": 1e-3}, "loop.steps": 6}
    changes |= {"loop.guard": {"max_skipped_in_a_row": 2}, "task.adversarial.adaptive": True}
    assert vqgan.train_tokenizer.train(stage_1(tmp_path / "fp32", **changes))
    assert vqgan.train_tokenizer.train(stage_1(tmp_path / "fp16", **changes, **{"task.precision": "fp16"}))
    assert _losses(tmp_path / "fp16") == pytest.approx(_losses(tmp_path / "fp32"), rel=0.03)
    adversarial = [_metrics(tmp_path / name, "adversarial_weight")[-1] for name in ("fp16", "fp32")]
    assert adversarial[0] == pytest.approx(adversarial[1], rel=0.1)

    monkeypatch.setattr("vqgan.training.optim.loss_scale.INITIAL", 2.0**60)
    monkeypatch.setattr("vqgan.training.optim.loss_scale.HIGHEST", 2.0**60)
    assert vqgan.train_tokenizer.train(stage_1(tmp_path / "run", **changes, **{"task.precision": "fp16"}))
    records = [record for record in RunFolder(tmp_path / "run").read_metrics() if record["split"] == "train"]
    assert [record["overflowed"] for record in records] == [1.0] * 6
    assert [record["loss_scale"] for record in records] == [2.0 ** (60 - step) for step in range(6)]
    assert not any("skipped_steps" in record for record in records)
    state = _state(tmp_path / "run" / "checkpoints" / "step-0000006")
    assert state["optimizer"]["loss_scale"]["value"] == 2.0**54


def _losses(run: Path) -> list[Any]:
    return _metrics(run, "loss")


def _metrics(run: Path, name: str) -> list[Any]:
    return [record[name] for record in RunFolder(run).read_metrics() if name in record]


def _state(checkpoint: Path) -> dict[str, Any]:
    return torch.load(checkpoint / "state.pt", weights_only=True)
