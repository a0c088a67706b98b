"""Two gloo processes on the CPU that run one script, as a launcher would start them."""

import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

_ROOT = Path(__file__).parents[1]
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
    script: Path,
    arguments: Sequence[str],
    said: Path,
    environment: Mapping[str, str] | None = None,
    count: int = 2,
    seconds: float = 600,
) -> list[int]:
    """The exit codes; what they said is in the file `said`.

    They are killed after `seconds`, which only a hang takes.
    """
    shared = {
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "PYTHONWARNINGS": "default",
        "PYTHONPATH": str(_ROOT),
    }
    with said.open("a") as file:
        processes = [
            subprocess.Popen(
                [sys.executable, str(script), *arguments],
                env=os.environ | shared | (environment or {}) | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=file,
                stderr=subprocess.STDOUT,
            )
            for rank in range(count)
        ]
    try:
        return [process.wait(timeout=seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
