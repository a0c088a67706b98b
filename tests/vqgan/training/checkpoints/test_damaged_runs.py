"""A run whose checkpoints are damaged, or whose disk is full or read-only, loses nothing of what is intact."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import vqgan.train_tokenizer
from tests.killed_runs import assert_equal, contents
from tests.tiny_runs import stage_1
from vqgan.config.schema import dump_config
from vqgan.system.atomic_files import CannotWriteError
from vqgan.training.checkpoints.store import CheckpointError

_KEPT = {"loop.keep_checkpoints": 3}


def flip(path: Path) -> None:
    """One bit in the middle: of a weight, most likely."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 64
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("straight") / "run"
    assert vqgan.train_tokenizer.train(stage_1(run, **_KEPT))
    return run


@pytest.mark.parametrize(
    ("damage", "name", "said"),
    [
        (flip, "state.pt", "state.pt does not have its checksum"),
        (cut, "process-0.pt", "process-0.pt does not have its checksum"),
        (Path.unlink, "process-0.pt", "process-0.pt is missing"),
        (Path.unlink, "SHA256SUMS", "SHA256SUMS cannot be read (No such file or directory)"),
    ],
)
def test_the_run_goes_on_from_the_checkpoint_before(
    damage: Callable[[Path], None],
    name: str,
    said: str,
    straight: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    assert vqgan.train_tokenizer.train(stage_1(run, **_KEPT))
    for step in (6, 8):
        damage(run / "checkpoints" / f"step-{step:07d}" / name)
    capsys.readouterr()
    assert vqgan.train_tokenizer.train(stage_1(run, **_KEPT))
    lines = [line for line in capsys.readouterr().err.splitlines() if "is damaged" in line]
    folder = run / "checkpoints"
    assert lines == [
        f"stage 1: the checkpoint of step {step} is damaged ({said}) and set aside in {folder}; "
        "going on from that of step 3"
        for step in (8, 6)
    ]
    left = contents(run)
    aside = {part for part in left if "damaged-step-" in part}
    assert aside >= {f"checkpoints/damaged-step-{step:07d}" for step in (6, 8)}
    assert_equal({part: left[part] for part in left.keys() - aside}, contents(straight))


def test_where_none_is_intact_nothing_is_touched(tmp_path: Path) -> None:
    run = tmp_path / "run"
    changes: dict[str, Any] = {"loop.steps": 4, "task.adversarial.weight": 0.0}
    assert vqgan.train_tokenizer.train(stage_1(run, **changes))
    flip(run / "checkpoints" / "step-0000004" / "state.pt")
    (run / "checkpoints" / "step-0000003" / "process-0.pt").unlink()
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError) as caught:
        vqgan.train_tokenizer.train(stage_1(run, **changes | {"loop.steps": 6}))
    assert str(caught.value) == (
        f"no checkpoint in {run}/checkpoints is intact (step 4: state.pt does not have its checksum; step 3: "
        "process-0.pt is missing); put an intact copy there, or choose another run_dir to begin anew"
    )
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_space_is_looked_for_before_a_checkpoint_is_written(
    straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=100_000))
        with pytest.raises(CannotWriteError, match=r"checkpoints.*0\.3 MB are needed and 0\.1 MB are free; free some"):
            vqgan.train_tokenizer.train(stage_1(run, **_KEPT))
    assert list((run / "checkpoints").iterdir()) == []
    assert vqgan.train_tokenizer.train(stage_1(run, **_KEPT))
    assert_equal(contents(run), contents(straight))


_SMALL_DISK = """
import ctypes, os, subprocess, sys
folder, tool, config = sys.argv[1:]
libc = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNS, CLONE_NEWUSER, MS_RDONLY, MS_REMOUNT = 0x20000, 0x10000000, 1, 32
if libc.unshare(CLONE_NEWNS if os.geteuid() == 0 else CLONE_NEWNS | CLONE_NEWUSER) or libc.mount(
    b"tmpfs", folder.encode(), b"tmpfs", 0, b"size=2m"
):
    sys.exit(99)
def remount(flags):
    assert libc.mount(b"tmpfs", folder.encode(), b"tmpfs", MS_REMOUNT | flags, b"size=2m") == 0
def train(*more):
    return subprocess.run([sys.executable, tool, "--config", config, *more], stderr=subprocess.PIPE, text=True)
filler = os.path.join(folder, "filler")
open(filler, "wb").write(bytes(1_267_152))  # leaves room for two checkpoints and one model, not for a second model
full = train()
assert full.returncode == 2, full
(line,) = [line for line in full.stderr.splitlines() if line.startswith("error: ")]
assert "free some space, then run the same command again: it goes on from the last checkpoint" in line, line
assert os.listdir(os.path.join(folder, "run", "checkpoints")) == ["step-0000003"]
os.remove(filler)
remount(MS_RDONLY)
refused = train()
assert refused.returncode == 2, refused
assert "Read-only file system; make the folder writable, or choose another run_dir" in refused.stderr, refused
remount(0)
assert train().returncode == 0
subprocess.run(["cp", "-r", os.path.join(folder, "run"), os.path.join(os.path.dirname(folder), "run")], check=True)
"""


@pytest.mark.slow  # three starts of the tool
@pytest.mark.skipif(sys.platform != "linux", reason="mounts a small disk")
def test_a_small_disk_that_is_full_then_read_only_then_mended(straight: Path, tmp_path: Path) -> None:
    """A real file system in a name space of its own: to root no folder is read-only otherwise."""
    disk, config = tmp_path / "disk", tmp_path / "config.yaml"
    disk.mkdir()
    config.write_text(dump_config(stage_1(disk / "run", **_KEPT)))
    tool = Path(__file__).parents[4] / "tools" / "train_vqgan.py"
    done = subprocess.run(
        [sys.executable, "-c", _SMALL_DISK, str(disk), str(tool), str(config)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode == 99:
        pytest.skip("mounting is not allowed here")
    assert done.returncode == 0, done.stderr
    left, expected = contents(tmp_path / "run"), contents(straight)
    for run in (left, expected):
        run.pop("config.yaml")  # names another folder
    assert_equal(left, expected)
