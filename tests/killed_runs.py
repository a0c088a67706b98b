"""Real training processes that are killed, get signals, or find the disk full, at chosen moments.

Importing torch costs more than one of these runs: a server process imports everything once, has gone through a run of
every kind, and forks a child for each command. That is sound while no other thread of the server can hold a lock: the
threads are counted before every fork. A child is then a process like any other: `kill -9` takes it away without a
trace.
"""

import hashlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.two_processes import assert_sound_to_fork
from vqgan.config.schema import Config, dump_config
from vqgan.system import atomic_files as durable
from vqgan.training.run_folder import RunFolder

_ROOT = Path(__file__).parents[1]
TIMINGS = ("seconds", "images_per_second")
_IF_ENDED = os.WEXITED | os.WNOHANG | os.WNOWAIT
_CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate")


@dataclass(frozen=True)
class Ending:
    """How a command ended."""

    code: int
    """Exit code; the number of the signal that ended it, negative."""
    said: str
    seconds: float
    changes: int
    """How often it changed its run folder."""
    outlived: bool
    """Whether a process that it had started was still there three seconds later."""


class Commands:
    """Runs training commands in forked processes."""

    def __init__(self, server: subprocess.Popen[str]) -> None:
        self._server = server

    def run(
        self,
        config: Config,
        *,
        kill_after: float | None = None,
        kill_at: int | None = None,
        full_from: int | None = None,
        exchange: bool = True,
        signals: Sequence[tuple[str, int]] = (),
    ) -> Ending:
        """Train as the tool would, in a process group of its own.

        `kill_after` seconds, or just before change number `kill_at` of the run folder, the process is killed; from
        change number `full_from` on there is no space left. Without `exchange`, the system cannot exchange the names
        of two folders. `signals`: when this text was said, one after the other, this signal to the whole group as from
        a terminal; SIGKILL to the process alone.
        """
        order = {
            "type": type(config).__name__,
            "config": dump_config(config),
            "run_dir": str(config.run_dir),  # type: ignore[attr-defined]
            **{"kill_after": kill_after, "kill_at": kill_at, "full_from": full_from, "exchange": exchange},
            "signals": list(signals),
        }
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(order) + "\n")
        self._server.stdin.flush()
        answer = self._server.stdout.readline()
        assert answer, "the server ended"
        return Ending(**json.loads(answer))


@contextmanager
def command_server() -> Iterator[Commands]:
    """A warmed server for as long as the context lasts."""
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "RAYON_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": str(_ROOT),
    }
    server = subprocess.Popen(
        [sys.executable, "-m", __spec__.name], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert server.stdin is not None
    try:
        yield Commands(server)
    finally:
        server.stdin.close()  # the server ends with its orders
        server.wait(timeout=60)
        assert server.stdout is not None
        server.stdout.close()


def contents(run_dir: Path) -> dict[str, Any]:
    """Everything in a run folder but timings, comparable."""
    found: dict[str, Any] = {}
    for path in sorted(run_dir.rglob("*")):
        name = str(path.relative_to(run_dir))
        if path.is_dir():
            found[name] = "folder"
        elif "damaged-" in name:
            found[name] = "damaged"
        elif path.suffix == ".pt":
            state = torch.load(path, weights_only=True)
            for part, timings in (("loop", ("seconds", "metrics_bytes", "metrics_lines")), ("window", ("seconds",))):
                for timing in timings:
                    state.get(part, {}).pop(timing, None)
            found[name] = state
        elif path.name == "metrics.jsonl":
            assert path.read_text().count("\n") == len(RunFolder(run_dir).read_metrics()), "no line is torn"
            found[name] = [
                {key: value for key, value in record.items() if key not in TIMINGS}
                for record in RunFolder(run_dir).read_metrics()
            ]
        elif path.name == "config.yaml":
            found[name] = path.read_text().replace(str(run_dir), "RUN")
        elif path.name == "report.html":  # times, and the folder's name
            found[name] = "page"
        elif path.name != "SHA256SUMS":
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def assert_equal(one: Any, other: Any, where: str = "state") -> None:
    """Bit for bit."""
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_equal(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for number, pair in enumerate(zip(one, other, strict=True)):
            assert_equal(*pair, f"{where}.{number}")
    else:
        assert one == other, where


def _serve() -> None:
    """Read orders line by line; answer each with how the command ended."""
    _warm_up()
    for line in sys.stdin:
        order = json.loads(line)
        assert_sound_to_fork()
        with tempfile.TemporaryDirectory() as folder:
            sys.stdout.write(json.dumps(_carry_out(order, Path(folder))) + "\n")
            sys.stdout.flush()


def _carry_out(order: dict[str, Any], folder: Path) -> dict[str, Any]:
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        _train(order, folder)
    said = folder / "said"
    for text, number in order["signals"]:
        while not (said.exists() and text in said.read_text()) and os.waitid(os.P_PID, child, _IF_ENDED) is None:
            time.sleep(0.005)
        (os.kill if number == signal.SIGKILL else os.killpg)(child, number)
    if order["kill_after"] is not None:
        descriptor = os.pidfd_open(child)
        if not select.select([descriptor], [], [], order["kill_after"])[0]:
            os.kill(child, signal.SIGKILL)
        os.close(descriptor)
    _, status = os.waitpid(child, 0)
    seconds, changes = time.monotonic() - started, folder / "changes"
    while (outlived := _is_alive(child)) and time.monotonic() - started < seconds + 3:
        time.sleep(0.01)
    return {
        "code": os.waitstatus_to_exitcode(status),
        "said": said.read_text() if said.exists() else "",
        "seconds": seconds,
        "changes": int(changes.read_text()) if changes.exists() else 0,
        "outlived": outlived,
    }


def _is_alive(group: int) -> bool:
    """Whether a process of the group runs (a zombie does not)."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = stat.read_text().rpartition(")")[2].split()[:3]
        except (OSError, ValueError):
            continue  # it has just ended
        if its_group == str(group) and state not in "ZX":
            return True
    return False


def _train(order: dict[str, Any], folder: Path) -> None:
    """In the child: what the tool does, and no more."""
    from vqgan.cli.command_line import run_training

    code = 70
    try:
        said = os.open(folder / "said", os.O_WRONLY | os.O_CREAT)
        for standard in (1, 2):
            os.dup2(said, standard)
        config = folder / "config.yaml"
        config.write_text(order["config"])
        if not order["exchange"]:
            durable._exchange = lambda *_: False
        watch = _Watch(order["run_dir"], order["kill_at"], order["full_from"])
        sys.addaudithook(watch)
        config_type, train = _kinds()[order["type"]]
        code = run_training(["--config", str(config)], config_type, train, None)
        (folder / "changes").write_text(str(watch.changes))
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


class _Watch:
    """Counts what changes the run folder, as it is about to happen."""

    def __init__(self, run_dir: str, kill_at: int | None, full_from: int | None) -> None:
        self.changes = 0
        self._run_dir = run_dir
        self._kill_at = kill_at
        self._full_from = full_from

    def __call__(self, event: str, arguments: Sequence[Any]) -> None:
        if event == "open":
            path, _, flags = arguments
            if not isinstance(flags, int) or not flags & (os.O_WRONLY | os.O_RDWR):
                return
        elif event in _CHANGES:
            path = arguments[0]
        else:
            return
        if isinstance(path, int):
            return
        if not os.fspath(path).startswith(self._run_dir) and os.path.isabs(path):  # noqa: PTH117
            return
        self.changes += 1
        if self.changes == self._kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        takes_space = event in ("open", "os.mkdir")
        if takes_space and self._full_from is not None and self.changes >= self._full_from:
            raise OSError(28, "No space left on device")


def _kinds() -> dict[str, tuple[Any, Any]]:
    import parti.fused.synthesis.train_synthesis
    import parti.next_token.train_next_token
    import vqgan.train_tokenizer

    synthesis = parti.fused.synthesis.train_synthesis
    return {
        "TrainVQGANConfig": (vqgan.train_tokenizer.TrainVQGANConfig, vqgan.train_tokenizer.train),
        "TrainPartiConfig": (
            parti.next_token.train_next_token.TrainPartiConfig,
            parti.next_token.train_next_token.train,
        ),
        "TrainSynthesisConfig": (synthesis.TrainSynthesisConfig, synthesis.train),
    }


def _warm_up() -> None:
    """One run of every kind: what is imported late is imported, what is built once is built."""
    from tests.parti.fused.synthesis.tiny_synthesis import tiny_run
    from tests.tiny_runs import stage_1, stage_2, untrained_tokenizer

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name, open(os.devnull, "w") as nothing:  # noqa: PTH123
        folder, told = Path(name), sys.stderr
        sys.stderr = nothing
        tokenizer = untrained_tokenizer(folder / "tokenizer")
        for config in (stage_1(folder / "1"), stage_2(folder / "2", tokenizer), tiny_run(folder / "3")):
            assert _kinds()[type(config).__name__][1](config)
        sys.stderr = told


if __name__ == "__main__":
    _serve()
