"""kill -9 at any moment, the same command again: the run that was never killed, bit for bit.

Two kinds of moments: by the clock, in any instruction; and just before each change that a run makes to its folder,
where what is half done would stay half done. A disk that is full from such a moment on is the third.
"""

import random
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.killed_runs import Commands, assert_equal, contents
from tests.tiny_runs import stage_1, stage_2, untrained_tokenizer
from vqgan.config.schema import Config, dump_config

_LOOP = {"loop.steps": 9, "loop.log_every": 2, "loop.evaluate_every": 3, "loop.preview_every": 4, "loop.save_every": 2}
# Metrics whose best is not the last one: the checkpoint of an earlier step stays.
_BEST = {
    1: {"loop.keep_best": {"metric": "codebook_usage", "mode": "higher"}},
    2: {"loop.keep_best": {"metric": "nats_per_code", "mode": "higher"}},
}
_KILLED = -signal.SIGKILL


@dataclass
class Straight:
    """A run that was never killed: how long it took, how often it changed its folder, and what it left."""

    seconds: float
    changes: int
    left: dict[str, Any]


@dataclass
class Bench:
    """The same run of each stage, as often as it is asked for, each in a folder of its own."""

    commands: Commands
    folder: Path
    tokenizer: Path

    def config(self, stage: int, name: str) -> Config:
        changes = _LOOP | _BEST[stage]
        run_dir = self.folder / f"stage-{stage}" / name
        return stage_1(run_dir, **changes) if stage == 1 else stage_2(run_dir, self.tokenizer, **changes)

    def left(self, config: Config) -> dict[str, Any]:
        return contents(Path(config.run_dir))  # type: ignore[attr-defined]

    def completes(self, config: Config, straight: Straight) -> None:
        """The same command again, now to the end: nothing differs and nothing is left over."""
        ending = self.commands.run(config)
        assert ending.code == 0, ending.said
        assert_equal(self.left(config), straight.left)


@pytest.fixture(scope="module")
def bench(commands: Commands, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("kills")
    return Bench(commands, folder, untrained_tokenizer(folder / "tokenizer"))


@pytest.fixture(scope="module")
def straight(bench: Bench) -> dict[int, Straight]:
    runs = {}
    for stage in (1, 2):
        config = bench.config(stage, "straight")
        ending = bench.commands.run(config)
        assert ending.code == 0, ending.said
        runs[stage] = Straight(ending.seconds, ending.changes, bench.left(config))
    return runs


def kill_by_the_clock(bench: Bench, straight: Straight, stage: int, kills: int) -> None:
    """One to three kills in a row at seeded moments, then to the end; and again until there were `kills`."""
    moments, done, number = random.Random(stage), 0, 0
    while done < kills:
        number += 1
        config = bench.config(stage, f"clock-{number}-of-{kills}")
        for _ in range(min(moments.randint(1, 3), kills - done)):
            ending = bench.commands.run(config, kill_after=moments.uniform(0.0, straight.seconds))
            assert ending.code in (0, _KILLED), ending.said
            done += ending.code == _KILLED
        bench.completes(config, straight)


def kill_at_changes(bench: Bench, straight: Straight, stage: int, moments: list[int], exchange: bool = True) -> None:
    """Killed at every one of these changes of the folder, each time in another run."""
    for number, change in enumerate(moments):
        config = bench.config(stage, f"change-{number}-of-{len(moments)}-{exchange}")
        ending = bench.commands.run(config, kill_at=change, exchange=exchange)
        assert ending.code == _KILLED, ending.said
        bench.completes(config, straight)


def some(straight: Straight, count: int, seed: int) -> list[int]:
    """Seeded moments, one in each of `count` equal stretches of a run's changes."""
    chosen, width = random.Random(seed), straight.changes / count
    return [1 + int((number + chosen.random()) * width) for number in range(count)]


def test_the_straight_runs_have_what_can_be_lost(straight: dict[int, Straight]) -> None:
    for stage, best in ((1, 6), (2, 3)):
        left = straight[stage].left
        checkpoints = {name.split("/")[1] for name in left if name.startswith("checkpoints/")}
        assert checkpoints == {f"step-{step:07d}" for step in (best, 8, 9)}
        assert left.keys() >= {"model/model.safetensors", "best/model.safetensors", "samples/step-0000004.png"}
        assert left["model/model.safetensors"] != left["best/model.safetensors"]
        assert straight[stage].changes > 100
    state = straight[1].left["checkpoints/step-0000009/state.pt"]
    assert state.keys() >= {"autoencoder", "ema", "optimizer", "codebook_maintenance", "discriminator_optimizer"}
    assert any("r1_penalty" in record for record in straight[1].left["metrics.jsonl"])


@pytest.mark.parametrize("stage", [1, 2])
def test_killed_a_few_times(stage: int, bench: Bench, straight: dict[int, Straight]) -> None:
    kill_by_the_clock(bench, straight[stage], stage, kills=2)
    kill_at_changes(bench, straight[stage], stage, some(straight[stage], 1, seed=stage), exchange=stage == 1)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2])
def test_killed_at_twenty_moments(stage: int, bench: Bench, straight: dict[int, Straight]) -> None:
    kill_by_the_clock(bench, straight[stage], stage, kills=20)


@pytest.mark.slow
@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("stage", [1, 2])
def test_killed_at_twenty_changes_of_its_folder(
    stage: int, exchange: bool, bench: Bench, straight: dict[int, Straight]
) -> None:
    kill_at_changes(bench, straight[stage], stage, some(straight[stage], 20, seed=10 + exchange), exchange)


def fill_the_disk(bench: Bench, straight: Straight, stage: int, moments: list[int]) -> None:
    """From this change on there is no space left: one line, exit code 2, and all that was whole still is."""
    for number, change in enumerate(moments):
        config = bench.config(stage, f"full-{number}-of-{len(moments)}")
        ending = bench.commands.run(config, full_from=change)
        if ending.code != 0:  # of the last changes some only remove
            assert ending.code == 2, ending.said
            (line,) = (line for line in ending.said.splitlines() if line.startswith("error: "))
            assert "No space left on device; free some space, then run the same command again" in line
            assert "Traceback" not in ending.said
        bench.completes(config, straight)


@pytest.mark.parametrize("stage", [1, 2])
def test_the_disk_is_full_from_some_moment_on(stage: int, bench: Bench, straight: dict[int, Straight]) -> None:
    fill_the_disk(bench, straight[stage], stage, some(straight[stage], 1, seed=20 + stage))


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2])
def test_the_disk_is_full_from_each_of_twenty_moments_on(
    stage: int, bench: Bench, straight: dict[int, Straight]
) -> None:
    fill_the_disk(bench, straight[stage], stage, some(straight[stage], 20, seed=30 + stage))


@pytest.mark.slow
def test_the_tool_itself_is_killed_five_times(bench: Bench, straight: dict[int, Straight]) -> None:
    """Without the server: an interpreter of its own for every command."""
    config, moments = bench.config(1, "tool"), random.Random(5)
    file = bench.folder / "tool.yaml"
    file.write_text(dump_config(config))
    command = [sys.executable, str(Path(__file__).parents[4] / "tools" / "train_vqgan.py"), "--config", str(file)]
    metrics = Path(config.run_dir) / "metrics.jsonl"  # type: ignore[attr-defined]
    for _ in range(5):
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            while process.poll() is None and not (metrics.exists() and metrics.stat().st_size):
                pass
            try:
                process.wait(timeout=moments.uniform(0.0, straight[1].seconds / 2))
            except subprocess.TimeoutExpired:
                process.kill()
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    assert_equal(bench.left(config), straight[1].left)
