"""Checkpoints that appear whole or not at all.

A checkpoint is a folder `step-XXXXXXX` with `state.pt` (a dictionary of the states of named objects) and one
`process-RANK.pt` a process. It is written under another name, flushed to disk and renamed last. Nothing but tensors
and plain containers is ever unpickled.
"""

import os
import pickle
import re
import shutil
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch


class CheckpointError(ValueError):
    """A checkpoint that does not belong to this run."""


@runtime_checkable
class Stateful(Protocol):
    """Anything whose state belongs to a checkpoint."""

    def state_dict(self) -> Any: ...

    def load_state_dict(self, state: Any, /) -> Any: ...


class Checkpoints:
    """The checkpoints of one run folder; the newest `keep` stay."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, oldest first."""
        if not self.folder.is_dir():
            return []
        names = (re.fullmatch(r"step-(\d+)", path.name) for path in self.folder.iterdir())
        return sorted(int(match[1]) for match in names if match)

    def prepare(self, step: int) -> Path:
        """An empty folder in which to write the checkpoint of `step`."""
        for unfinished in self.folder.glob(".writing-step-*"):
            shutil.rmtree(unfinished, ignore_errors=True)
        folder = self.folder / f".writing-step-{step:07d}"
        folder.mkdir(parents=True)
        return folder

    def write_part(self, step: int, name: str, state: dict[str, Any]) -> None:
        """Write one file of the checkpoint that is being prepared, down to the disk."""
        with (self.folder / f".writing-step-{step:07d}" / name).open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())

    def publish(self, step: int) -> Path:
        """Give the prepared checkpoint its name, and remove those that are too old."""
        final = self.folder / f"step-{step:07d}"
        shutil.rmtree(final, ignore_errors=True)
        (self.folder / f".writing-step-{step:07d}").rename(final)
        for old in self.steps()[: -self.keep]:
            shutil.rmtree(self.folder / f"step-{old:07d}", ignore_errors=True)
        return final

    def read_part(self, step: int, name: str) -> dict[str, Any]:
        """One file of a checkpoint. Raises FileNotFoundError when it is not there, CheckpointError when damaged."""
        path = self.folder / f"step-{step:07d}" / name
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise CheckpointError(
                f"{path} is damaged, or holds more than tensors and plain values ({reason[:200]}); "
                f"remove {path.parent} to go on from the checkpoint before it"
            ) from None


def collect(stateful: dict[str, Stateful]) -> dict[str, Any]:
    """The state of every named object."""
    return {name: thing.state_dict() for name, thing in stateful.items()}


def restore(stateful: dict[str, Stateful], state: dict[str, Any], source: str) -> None:
    """Load every named object. Raises CheckpointError when the names differ: the config is of another run."""
    if stateful.keys() != state.keys():
        raise CheckpointError(
            f"{source} holds the state of {', '.join(sorted(state))}, this run has {', '.join(sorted(stateful))}: "
            "the config changed; use another run_dir"
        )
    for name, thing in stateful.items():
        try:
            thing.load_state_dict(state[name])
        except (RuntimeError, ValueError, KeyError) as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError(
                f"{source}: {name} does not fit this config ({reason}); use another run_dir"
            ) from None
