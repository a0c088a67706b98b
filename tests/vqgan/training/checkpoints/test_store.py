"""Checkpoints appear whole or not at all, notice damage, and never run code."""

import os
import pickle
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from vqgan.training.checkpoints.store import CheckpointError, CheckpointMeta, Checkpoints, collect, restore

GOOD = CheckpointMeta(good=True, passing=False)


def write(
    checkpoints: Checkpoints, step: int, value: float = 0.0, about: CheckpointMeta = GOOD, keep: tuple[int, ...] = ()
) -> Path:
    checkpoints.prepare(step)
    checksums = checkpoints.save_rank_state(step, "state.pt", {"value": torch.tensor(value)})
    checksums |= checkpoints.save_rank_state(step, "process-0.pt", {"random": torch.arange(5)})
    return checkpoints.publish(step, checksums, about, keep)


def test_written_and_read_again(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    assert checkpoints.steps() == []
    state = {"tensor": torch.arange(3), "text": "a", "number": 1.5, "nested": {"list": [1, (2, 3)], "none": None}}
    checkpoints.prepare(7)
    checksums = checkpoints.save_rank_state(7, "state.pt", state)
    checksums |= checkpoints.save_rank_state(7, "process-0.pt", {"rank": 0})
    folder = checkpoints.publish(7, checksums, GOOD)
    assert folder == tmp_path / "checkpoints" / "step-0000007"
    assert sorted(path.name for path in folder.iterdir()) == [*("SHA256SUMS", "about.json", "process-0.pt", "state.pt")]
    assert checkpoints.steps() == [7]
    read = checkpoints.read_part(7, "state.pt")
    assert torch.equal(read.pop("tensor"), state.pop("tensor"))
    assert read == state
    with pytest.raises(FileNotFoundError):
        checkpoints.read_part(7, "process-1.pt")


def test_the_newest_stay(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (9, 10, 100, 1_000_000, 10_000_000):
        write(checkpoints, step)
    assert checkpoints.steps() == [1_000_000, 10_000_000]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-1000000", "step-10000000"]


def test_what_stays_beside_the_newest(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    troubled, passing = CheckpointMeta(good=False, passing=False), CheckpointMeta(good=False, passing=True)
    stay: list[list[int]] = []
    for step, about in ((1, GOOD), (2, GOOD), (3, troubled), (4, troubled), (5, troubled), (6, passing), (7, passing)):
        write(checkpoints, step, about=about, keep=(1,))
        stay.append(checkpoints.steps())
    write(checkpoints, 8, about=GOOD)
    # Of the best step, 1, as long as it is asked for; the newest good one, 2; one of a stop until the next one.
    assert stay == [[1], [1, 2], [1, 2, 3], [1, 2, 3, 4], [1, 2, 4, 5], [1, 2, 4, 5, 6], [1, 2, 4, 5, 7]]
    assert checkpoints.steps() == [5, 8]


def test_a_crash_before_the_end_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    write(checkpoints, 1, value=1.0)

    def full(_descriptor: int) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            write(checkpoints, 2)
    checkpoints.prepare(3)
    checkpoints.save_rank_state(3, "state.pt", {})  # killed before publish

    fresh = Checkpoints(tmp_path, keep=1)
    assert fresh.steps() == [1]
    assert fresh.read_part(1, "state.pt") == {"value": torch.tensor(1.0)}
    write(fresh, 2, value=2.0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-0000002"], "the unfinished ones are cleared away"


def test_a_step_may_be_written_again(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    write(checkpoints, 1, value=1.0)
    write(checkpoints, 1, value=2.0)
    assert checkpoints.read_part(1, "state.pt")["value"] == 2


class Malicious:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_malicious_file_is_refused_and_nothing_is_run(legacy: bool, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    path = write(checkpoints, 1) / "state.pt"
    evil = {"value": Malicious(tmp_path / "mark")}
    if legacy:
        path.write_bytes(pickle.dumps(evil, protocol=2))
    else:
        torch.save(evil, path)
    with pytest.raises(CheckpointError, match=r"state\.pt is damaged, or holds more than tensors.*step-0000001"):
        checkpoints.read_part(1, "state.pt")
    assert not (tmp_path / "mark").exists()


def test_damage_is_found_wherever_it_is_and_torch_alone_does_not_notice(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    folder = write(checkpoints, 1)
    assert checkpoints.damage(1) == []
    unnoticed, chance = 0, random.Random(0)
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        for _ in range(20):
            damaged = bytearray(whole)
            damaged[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
            path.write_bytes(damaged)
            assert checkpoints.damage(1), path
            if path.suffix == ".pt":
                try:
                    checkpoints.read_part(1, path.name)
                    unnoticed += 1
                except CheckpointError:
                    pass
        path.write_bytes(whole)
    assert checkpoints.damage(1) == []
    assert unnoticed > 20, "else the checksums would not be needed"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("process-0.pt", "process-0.pt is missing"),
        ("state.pt", "state.pt is missing"),
        ("SHA256SUMS", "SHA256SUMS cannot be read (No such file or directory)"),
    ],
)
def test_a_missing_file_is_damage(name: str, message: str, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    (write(checkpoints, 1) / name).unlink()
    assert checkpoints.damage(1) == [message]
    for processes in (2, 3):  # one of which finds it
        found = [line for rank in range(processes) for line in checkpoints.damage(1, rank, processes)]
        assert set(found) == {message}


def test_the_checksums_are_those_that_sha256sum_reads(tmp_path: Path) -> None:
    folder = write(Checkpoints(tmp_path, keep=2), 1)
    if shutil.which("sha256sum") is None:
        pytest.skip("coreutils")
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=folder, check=True)


@pytest.mark.parametrize("content", [b"", b"nonsense", None])
def test_a_damaged_file_is_one_clear_error(content: bytes | None, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    path = write(checkpoints, 1) / "state.pt"
    path.write_bytes(path.read_bytes()[:-50] if content is None else content)
    with pytest.raises(CheckpointError, match="is damaged") as caught:
        checkpoints.read_part(1, "state.pt")
    assert "\n" not in str(caught.value)


def test_collect_and_restore() -> None:
    things = {"a": nn.Linear(2, 2), "b": nn.Linear(3, 1)}
    others = {"a": nn.Linear(2, 2), "b": nn.Linear(3, 1)}
    restore(others, collect(things), "here")
    assert torch.equal(others["b"].weight, things["b"].weight)


def test_the_state_of_another_config_is_refused() -> None:
    state = collect({"a": nn.Linear(2, 2), "b": nn.Linear(3, 1)})
    with pytest.raises(CheckpointError, match="here holds the state of a, b, this run has a: the config changed; use"):
        restore({"a": nn.Linear(2, 2)}, state, "here")
    with pytest.raises(CheckpointError, match=r"here: b does not fit this config .*; use another run_dir") as caught:
        restore({"a": nn.Linear(2, 2), "b": nn.Linear(4, 1)}, state, "here")
    assert "\n" not in str(caught.value)


def test_every_part_is_on_the_disk_before_the_checkpoint_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut: kill -9 alone would not show a missing flush."""
    happened: list[str] = []
    rename = Path.rename

    def flushed(descriptor: int) -> None:
        happened.append(Path(f"/proc/self/fd/{descriptor}").readlink().name.removeprefix(".new-"))

    def renamed(path: Path, target: Path) -> Path:
        happened.append("renamed")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(Path, "rename", renamed)
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.prepare(1)
    sums = checkpoints.save_rank_state(1, "state.pt", {"w": torch.zeros(3)})
    sums |= checkpoints.save_rank_state(1, "process-0.pt", {"seed": 1})
    sums |= checkpoints.write_file(1, "identity.json", b"{}")
    checkpoints.publish(1, sums, GOOD)
    before = happened[: happened.index("renamed")]
    parts = {path.name for path in checkpoints.folder_of(1).iterdir()}
    assert parts == {"state.pt", "process-0.pt", "identity.json", "about.json", "SHA256SUMS"}
    assert parts | {".writing-step-0000001"} <= set(before)
    assert happened[-1] == tmp_path.name, "and its name after"
