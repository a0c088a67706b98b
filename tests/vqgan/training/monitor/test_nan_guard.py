"""Steps without a finite gradient: skipped and counted; a run of them goes back once, with other data, then stops."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from vqgan.cli.command_line import run_training
from vqgan.config.schema import Config
from vqgan.data import loader
from vqgan.data.batch import Batch
from vqgan.data.images.transforms import TransformConfig
from vqgan.data.loader import BatchShard, DataConfig, DataPipeline
from vqgan.data.source import Sample
from vqgan.fingerprints import FrozenPart
from vqgan.training.checkpoints.store import Checkpoints
from vqgan.training.loop import LoopConfig, TrainingLoop
from vqgan.training.monitor.nan_guard import NaNGuard, NaNGuardConfig, TrainingDiverged, separate_skips
from vqgan.training.monitor.trackers import Trackers, TrackersConfig
from vqgan.training.optim.optimizer import Optimizer, OptimizerConfig
from vqgan.training.parallel.seeding import seed_everything
from vqgan.training.run_folder import RunFolder
from vqgan.training.task import Stateful

EVERY: dict[str, Any] = {"steps": 10, "log_every": 2, "evaluate_every": 0, "preview_every": 0, "save_every": 4}
DATA = DataConfig(batch_size=4, transform=TransformConfig(image_size=4), val_limit=4)
Poison = Callable[["Learner", int, tuple[str, ...]], bool]


class Squares:
    def __len__(self) -> int:
        return 200  # more than any run here reads: a batch's names tell its place in the run

    def __getitem__(self, index: int) -> Sample:
        return Sample(Image.new("RGB", (4, 4), (index, 255 - index, 7)), None, f"square {index}")


class Learner:
    """A small regression with random targets; its gradient is not a number where `poison` says so."""

    def __init__(self, poison: Poison) -> None:
        self.poison = poison
        self.weights = nn.Linear(3, 1)
        self.optimizer = Optimizer(OptimizerConfig(learning_rate=0.1), self.weights, steps=10)
        self.seen: list[tuple[int, tuple[str, ...]]] = []

    def train_step(self, batches: Sequence[Batch], step: int) -> dict[str, Tensor]:
        (batch,) = batches
        self.seen.append((step, tuple(batch.names)))
        colors = batch.images.mean(dim=(2, 3))
        loss = (self.weights(colors) - torch.rand(len(colors), 1)).square().mean()
        if self.poison(self, step, tuple(batch.names)):
            loss = loss * math.nan
        loss.backward()
        return {"loss": loss.detach()} | self.optimizer.step(step)

    def diagnose(self, metrics: Mapping[str, float]) -> list[str]:
        return ["lower the rate."] if metrics.get("skipped_share") else []

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        return {"images": float(sum(len(batch) for batch in batches))}

    def preview(self, batch: Batch) -> Image.Image:
        return Image.new("RGB", (len(batch), 1))

    def stateful(self) -> dict[str, Stateful]:
        return {"weights": self.weights, "optimizer": self.optimizer}

    def frozen_parts(self) -> dict[str, FrozenPart]:
        return {}

    def save_model(self, folder: Path) -> None:
        (folder / "model").write_text("")


@pytest.fixture(autouse=True)
def squares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "open_source", lambda *_, **__: Squares())


def pipeline() -> DataPipeline:
    return DataPipeline(DATA, seed=0)


def batch_names(count: int) -> list[tuple[str, ...]]:
    """Names in the batches of a run that nothing disturbs."""
    return [tuple(batch.names) for (batch,) in pipeline().training_batches(0, count, BatchShard())]


def prepared(folder: Path, poison: Poison, **settings: Any) -> tuple[TrainingLoop, Learner]:
    seed_everything(0, 0)
    data, task = pipeline(), Learner(poison)
    accelerator, run_folder = Accelerator(), RunFolder(folder)
    run_folder.create()
    trackers = Trackers(TrackersConfig(), run_folder, accelerator, {})
    config = LoopConfig.model_validate(EVERY | settings)
    return TrainingLoop(config, task, data, run_folder, accelerator, trackers, data.preview_batch(3), "test"), task


def at_steps(*steps: int) -> Poison:
    return lambda _task, step, _names: step in steps


def at_batches(first: int, last: int) -> Poison:
    """Wherever in the run these batches are met."""
    bad = batch_names(20)[first : last + 1]
    return lambda _task, _step, names: names in bad


def final(folder: Path, step: int = 10) -> dict[str, Any]:
    state = Checkpoints(folder / "checkpoints", 2).read_part(step, "state.pt")
    for name in ("seconds", "metrics_bytes", "metrics_lines"):
        state["loop"].pop(name)
    return state


def metrics(folder: Path) -> list[dict[str, object]]:
    timings = ("seconds", "images_per_second")
    records = RunFolder(folder).read_metrics()
    return [{name: value for name, value in record.items() if name not in timings} for record in records]


def flat(state: Any) -> list[Any]:
    """Leaves of a nested state, comparable."""
    if isinstance(state, dict):
        return [leaf for key in state for leaf in (key, *flat(state[key]))]
    if isinstance(state, list | tuple):
        return [leaf for item in state for leaf in flat(item)]
    return state.flatten().tolist() if isinstance(state, Tensor) else [state]


def test_a_skipped_step_is_counted_and_leaves_the_means_alone(tmp_path: Path) -> None:
    loop, task = prepared(tmp_path, at_steps(2, 5))
    assert loop.run()
    assert [step for step, _ in task.seen] == list(range(10))
    train = [record for record in metrics(tmp_path) if record["split"] == "train"]
    assert [record.get("skipped_steps") for record in train] == [None, 1, 2, 2, 2]
    assert [record.get("skipped_share") for record in train] == [None, 0.5, 0.5, None, None]
    assert not any("skipped" in record for record in train)

    hand = prepared(tmp_path / "hand", at_steps(2, 5))[1]
    losses = [
        hand.train_step(batches, step)["loss"].item()
        for step, batches in enumerate(pipeline().training_batches(0, 10, BatchShard()))
    ]
    assert [math.isnan(loss) for loss in losses] == [step in (2, 5) for step in range(10)]
    expected = [(losses[0] + losses[1]) / 2, losses[3], losses[4], (losses[6] + losses[7]) / 2]
    assert [record["loss"] for record in train][:4] == pytest.approx(expected, rel=1e-6)


def test_a_window_of_nothing_but_skips_still_gives_a_line(tmp_path: Path) -> None:
    loop, _ = prepared(tmp_path, at_steps(0, 1))
    assert loop.run()
    first = RunFolder(tmp_path).read_metrics()[0]
    assert first.keys() == {"step", "split", "images_per_second", "seconds", "skipped_steps", "skipped_share"}


def test_findings_are_said_and_written_when_they_appear(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loop, _ = prepared(tmp_path, at_steps(2, 4, 9))  # lines at 4 and 6 have it, 8 has not, 10 has it again
    assert loop.run()
    events = [record for record in metrics(tmp_path) if record["split"] == "event"]
    assert events == [
        {"step": step, "split": "event", "event": "finding", "finding": "lower the rate."} for step in (4, 10)
    ]
    assert capsys.readouterr().err.count("lower the rate.") == 2


BACK = {"guard": {"max_skipped_in_a_row": 3}}


def test_a_run_of_skips_goes_back_once_and_passes_over_the_batches_that_led_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loop, task = prepared(tmp_path, at_batches(5, 7), **BACK)
    assert loop.run()
    names = batch_names(14)
    # Eight steps on batches 0 to 7; back to the checkpoint of step 4, from where batches 8 to 13 are read.
    assert task.seen == [*zip(range(8), names[:8], strict=True), *zip(range(4, 10), names[8:], strict=True)]

    seed_everything(0, 0)
    hand = Learner(lambda *_: False)
    batches = list(pipeline().training_batches(0, 14, BatchShard()))
    for step in range(4):
        hand.train_step(batches[step], step)
    torch.manual_seed(8)  # fresh draws: the run's seed, 0, and the step that it came back from
    for step in range(4, 10):
        hand.train_step(batches[step + 4], step)
    state = final(tmp_path)
    assert flat(state["weights"]) == flat(hand.weights.state_dict())
    assert flat(state["optimizer"]) == flat(hand.optimizer.state_dict())
    guard = state["loop"]["guard"]
    assert (guard["data_offset"], guard["rollbacks"], guard["skipped_steps"]) == (4, 1, 3)

    records = metrics(tmp_path)
    assert [(record["step"], record["split"]) for record in records] == [
        *((2, "train"), (4, "train"), (4, "event"), (6, "train"), (8, "train"), (10, "train"), (10, "val"))
    ]
    event = records[2]
    assert (event["event"], event["from"], event["to"]) == ("rolled_back", 8, 4)
    assert [record.get("skipped_steps") for record in records if record["split"] == "train"] == [None, None, 3, 3, 3]
    said = capsys.readouterr().err
    assert "step 8: 3 steps in a row without a finite gradient (model); back to step 4" in said


def test_the_second_time_the_run_stops_with_an_explanation(tmp_path: Path) -> None:
    loop, task = prepared(tmp_path, at_steps(*range(5, 10)), **BACK)
    with pytest.raises(TrainingDiverged) as stopped:
        loop.run()
    assert str(stopped.value) == (
        "training diverged at step 8: 3 steps in a row without a finite gradient (model), and "
        "loop.guard.max_rollbacks is 1. lower the rate."
    )
    assert [step for step, _ in task.seen] == [*range(8), *range(4, 8)]
    assert metrics(tmp_path)[-1]["event"] == "diverged"
    again, _ = prepared(tmp_path, at_steps(*range(5, 10)), **BACK)
    with pytest.raises(TrainingDiverged):
        again.run()  # and it does not go back a second time
    assert sum(record.get("event") == "rolled_back" for record in metrics(tmp_path)) == 1
    healed, _ = prepared(tmp_path, at_steps(), **BACK)
    assert healed.run()


def test_without_a_checkpoint_the_run_stops_and_says_so(tmp_path: Path) -> None:
    loop, _ = prepared(tmp_path, at_steps(0, 1, 2), **BACK)
    with pytest.raises(TrainingDiverged, match=r"at step 3: .* no checkpoint from before"):
        loop.run()


def test_zero_never_stops(tmp_path: Path) -> None:
    loop, task = prepared(tmp_path, at_steps(*range(1, 10)), guard={"max_skipped_in_a_row": 0})
    assert loop.run()
    assert len(task.seen) == 10
    assert final(tmp_path)["loop"]["guard"]["skipped_steps"] == 9


class Killed(BaseException):
    """Nothing of the program gets to run afterwards."""


@pytest.mark.parametrize("call", [7, 9, 10, 12])  # while skipping; just back; on the way; beyond the next checkpoint
@pytest.mark.parametrize("how", ["killed", "signalled"])
def test_a_run_that_went_back_resumes_exactly(call: int, how: str, tmp_path: Path) -> None:
    straight, _ = prepared(tmp_path / "straight", at_batches(5, 7), **BACK)
    assert straight.run()

    loop, task = prepared(tmp_path / "run", at_batches(5, 7), **BACK)
    train_step = task.train_step

    def ended(batches: Sequence[Batch], step: int) -> dict[str, Tensor]:
        if len(task.seen) == call:
            if how == "killed":
                raise Killed
            loop._stop.made = True
        return train_step(batches, step)

    task.train_step = ended  # type: ignore[method-assign]
    if how == "killed":
        with pytest.raises(Killed):
            loop.run()
    else:
        assert loop.run() is False
    torch.manual_seed(12345)
    again, task = prepared(tmp_path / "run", at_batches(5, 7), **BACK)
    assert again.run()
    assert flat(final(tmp_path / "run")) == flat(final(tmp_path / "straight"))
    assert metrics(tmp_path / "run") == metrics(tmp_path / "straight")


def test_a_checkpoint_of_troubled_steps_is_not_gone_back_to(tmp_path: Path) -> None:
    """Steps 6 and 7 are skipped; the save that is due at 8 waits for step 9, too close to the trouble to be good."""
    poison = at_steps(6, 7, 9, 10, 11)
    loop, _ = prepared(tmp_path, poison, **BACK, steps=20, keep_checkpoints=5)
    done: list[list[int]] = []
    go_back = loop._go_back

    def watched(at: int, progress: Any) -> int:
        done.append(loop._checkpoints.checkpoints.steps())
        loop.task.poison = at_steps()  # type: ignore[attr-defined]
        return go_back(at, progress)

    loop._go_back = watched  # type: ignore[method-assign]
    assert loop.run()
    assert done == [[4, 9]]
    (event,) = (record for record in metrics(tmp_path) if record.get("event") == "rolled_back")
    assert (event["from"], event["to"]) == (12, 4)
    assert Checkpoints(tmp_path / "checkpoints", 5).steps() == [4, 8, 12, 16, 20]


def test_flags_are_separated_from_metrics() -> None:
    flags = {"skipped": torch.tensor(0.0), "discriminator_skipped": torch.tensor(1.0)}
    kept, players = separate_skips(flags | {"loss": torch.tensor(2.0), "skipped_items": torch.tensor(3.0)})
    assert kept.keys() == {"loss", "skipped_items"}
    assert players == ["discriminator"]
    assert separate_skips({"skipped": torch.tensor(1.0)}) == ({}, ["model"])


def test_the_guard_is_calm_only_when_the_trouble_is_as_far_away_as_it_may_be_long() -> None:
    guard = NaNGuard(NaNGuardConfig(max_skipped_in_a_row=2))
    moments = []
    for skipped in (False, True, False, False, True, True):
        guard.count(skipped)
        moments.append((guard.skipping, guard.reset_skips, guard.diverged))
    assert moments == [
        (False, True, False),
        (True, False, False),
        (False, False, False),
        (False, True, False),
        (True, False, False),
        (True, False, True),
    ]
    other = NaNGuard(guard.config)
    other.load_state_dict(guard.state_dict())
    assert other.state_dict() == guard.state_dict()


def test_divergence_is_one_line_for_the_user_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    def diverging(_config: Config) -> bool:
        raise TrainingDiverged("training diverged at step 3: lower task.optimizer.learning_rate")

    assert run_training([], LoopConfig, diverging, None) == 2
    assert capsys.readouterr().err == ("error: training diverged at step 3: lower task.optimizer.learning_rate\n")
