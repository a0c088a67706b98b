"""A call in a child process that may take so much time and memory, so that a bomb ends the child and not the tests."""

import os
import pickle
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any


def call_bounded(call: Callable[[], Any], *, seconds: int = 20, megabytes: int = 1024) -> Any:
    """What `call` returns. Raises AssertionError where it takes more processor seconds or memory, or ends the child."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        own = int(Path("/proc/self/statm").read_text().split()[0]) * 4096
        resource.setrlimit(resource.RLIMIT_AS, (own + (megabytes << 20), resource.RLIM_INFINITY))
        used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
        resource.setrlimit(resource.RLIMIT_CPU, (int(used) + seconds, resource.RLIM_INFINITY))
        signal.alarm(20 * seconds)  # waiting takes no processor's time
        try:
            result: Any = call()
        except BaseException as error:
            result = f"{type(error).__name__}: {error}"
        with os.fdopen(writing, "wb") as file:
            pickle.dump(result, file)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        content = file.read()
    _, status = os.waitpid(child, 0)
    assert status == 0, f"it took more than {seconds} s or {megabytes} MB (status {status})"
    return pickle.loads(content)
