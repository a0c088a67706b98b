"""Gloo processes on the CPU that call one function, as a launcher would start them.

Importing torch costs more than most of these functions: a server that has imported everything forks the processes.
That is sound while no other thread of the server can hold a lock: the threads are counted before every fork.
"""

import atexit
import functools
import importlib
import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[1]
_SAFE_THREADS = {"jemalloc_bg_thd"}
"""pyarrow's allocator: it has handlers of its own for forks."""
FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
"""What `accelerate launch` hands on of configs/accelerate/fsdp2.yaml."""


def free_port() -> int:
    """A port to meet at. Below those that systems hand out by themselves: another test's server would take it between
    this look and the meeting."""
    while True:
        port = 15_000 + secrets.randbelow(15_000)
        with socket.socket() as free:
            try:
                free.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def run_in_processes(
    function: Callable[..., Any],
    *arguments: str | Path,
    said: Path,
    environment: Mapping[str, str] | None = None,
    count: int = 2,
    seconds: float = 600,
) -> list[int]:
    """Call a function of a module in `count` processes, each with its RANK in its environment.

    Returns the exit codes: what the function returned if that is a number. What the processes said is added to the file
    `said`. They are killed after `seconds`, which only a hang takes.
    """
    order = {
        "function": [function.__module__, function.__name__],
        "arguments": [str(argument) for argument in arguments],
        "said": str(said),
        "seconds": seconds,
        "environments": [
            {
                "ACCELERATE_USE_CPU": "true",
                "WORLD_SIZE": str(count),
                "LOCAL_WORLD_SIZE": str(count),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                **(environment or {}),
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
            }
            for port in [free_port()]
            for rank in range(count)
        ],
    }
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(json.dumps(order) + "\n")
    server.stdin.flush()
    answer = server.stdout.readline()
    assert answer, "the server ended"
    codes: list[int] = json.loads(answer)
    return codes


@functools.cache
def _server() -> "subprocess.Popen[str]":
    """One for all tests of this process; it ends with it."""
    fixed = {
        "OMP_NUM_THREADS": "1",
        "RAYON_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONWARNINGS": "default",
        "PYTHONPATH": str(_ROOT),
    }
    server = subprocess.Popen(
        [sys.executable, "-m", __name__],
        env=os.environ | fixed,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def end() -> None:
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.close()
        server.stdout.close()
        server.wait(timeout=60)

    atexit.register(end)
    return server


def assert_sound_to_fork() -> None:
    """No other thread can hold a lock."""
    tasks = Path("/proc/self/task").iterdir()
    others = {(task / "comm").read_text().strip() for task in tasks if task.name != str(os.getpid())}
    assert others <= _SAFE_THREADS, f"to fork with other threads is not sound: {others}"


def _serve() -> None:
    answers = os.dup(1)
    os.dup2(2, 1)
    for line in sys.stdin:
        order = json.loads(line)
        module, name = order["function"]
        function = getattr(importlib.import_module(module), name)
        assert_sound_to_fork()
        children = [_forked(function, order, environment) for environment in order["environments"]]
        codes = _codes(children, time.monotonic() + order["seconds"])
        os.write(answers, (json.dumps(codes) + "\n").encode())


def _forked(function: Callable[..., Any], order: dict[str, Any], environment: dict[str, str]) -> int:
    child = os.fork()
    if child:
        return child
    code: Any = 70
    try:
        said = os.open(order["said"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for standard in (1, 2):
            os.dup2(said, standard)
        os.environ |= environment
        code = function(*order["arguments"])
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 0)


def _codes(children: list[int], until: float) -> list[int]:
    codes: dict[int, int] = {}
    while len(codes) < len(children):
        for child in children:
            if child not in codes:
                done, status = os.waitpid(child, os.WNOHANG)
                if done:
                    codes[child] = os.waitstatus_to_exitcode(status)
                elif time.monotonic() > until:
                    os.kill(child, 9)
        time.sleep(0.01)
    return [codes[child] for child in children]


if __name__ == "__main__":
    _serve()
