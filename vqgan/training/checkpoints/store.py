"""The checkpoints of a run folder: written atomically, with checksums.

A checkpoint is a folder `step-XXXXXXX` with `state.pt` (a dictionary of the states of named objects), one
`process-RANK.pt` a process, `about.json` and `SHA256SUMS` (`sha256sum -c` reads it too). It is written under another
name, flushed to disk and renamed last. Only tensors and plain containers are unpickled. torch.load does not notice a
flipped byte and returns wrong numbers: hence the checksums.
"""

import hashlib
import json
import os
import pickle
import re
import shutil
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from vqgan.errors import UserError
from vqgan.system.atomic_files import put_in_place, recover_folder, remove_folder, sync_folder, write_file, writing
from vqgan.training.checkpoints.sharded_state import save_sharded
from vqgan.training.task import Stateful

_SUMS, _ABOUT = "SHA256SUMS", "about.json"


class CheckpointError(UserError, ValueError):
    """A checkpoint of another run, or no intact checkpoint."""


@dataclass(frozen=True)
class CheckpointMeta:
    """What a checkpoint may be used for."""

    good: bool
    """A run may roll back to it."""
    passing: bool
    """Written only because the run was interrupted there: the next one replaces it."""


class Checkpoints:
    """The checkpoints of one run folder: the newest `keep`, the newest good one, and those that are asked for."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    def steps(self) -> list[int]:
        """Returns the steps of the complete checkpoints, oldest first."""
        if not self.folder.is_dir():
            return []
        names = (re.fullmatch(r"step-(\d+)", path.name) for path in self.folder.iterdir())
        return sorted(int(match[1]) for match in names if match)

    def clean_up(self) -> None:
        """Removes what a kill has left: unfinished checkpoints, and those that were being removed."""
        for old in self.folder.glob(".old-step-*"):
            recover_folder(old.with_name(old.name.removeprefix(".old-")))
        for pattern in (".writing-step-*", ".removed-step-*"):
            for leftover in self.folder.glob(pattern):
                shutil.rmtree(leftover, ignore_errors=True)

    def prepare(self, step: int) -> Path:
        """Returns an empty folder in which to write the checkpoint of `step`."""
        folder = self._unfinished(step)
        with writing(self.folder):
            self.clean_up()
            folder.mkdir(parents=True)
        return folder

    def save_rank_state(self, step: int, name: str, state: dict[str, Any]) -> dict[str, str]:
        """Writes one file of the unfinished checkpoint, flushed to disk; returns its checksum by name."""
        with writing(self.folder), (self._unfinished(step) / name).open("wb") as file:
            summing = _Summing(file)
            summing.save(state)
            file.flush()
            os.fsync(file.fileno())
        return {name: summing.checksum()}

    def write_file(self, step: int, name: str, content: bytes) -> dict[str, str]:
        """Writes bytes likewise."""
        with writing(self.folder):
            write_file(self._unfinished(step) / name, content)
        return {name: hashlib.sha256(content).hexdigest()}

    def save_sharded(self, step: int, divided: dict[str, Any]) -> dict[str, str]:
        """Write this process's parts of divided tensors (see `vqgan.training.checkpoints.sharded_state`); as
        `save_rank_state`."""
        with writing(self.folder):
            return save_sharded(divided, self._unfinished(step))

    def publish(
        self, step: int, checksums: Mapping[str, str], about: CheckpointMeta, keep: Collection[int] = ()
    ) -> Path:
        """Publishes the unfinished checkpoint, whose files have these checksums, and removes those that are too old.

        Those of the steps in `keep` stay in any case.
        """
        unfinished, final = self._unfinished(step), self._named(step)
        content = (json.dumps(asdict(about)) + "\n").encode()
        sums = {**checksums, _ABOUT: hashlib.sha256(content).hexdigest()}
        lines = "".join(f"{checksum}  {name}\n" for name, checksum in sorted(sums.items()))
        with writing(self.folder):
            write_file(unfinished / _ABOUT, content)
            write_file(unfinished / _SUMS, lines.encode())
            sync_folder(self.folder.parent)
            put_in_place(unfinished, final)
            self._remove_old({step, *keep})
        return final

    def abandon(self, step: int) -> None:
        """Discards the unfinished checkpoint."""
        shutil.rmtree(self._unfinished(step), ignore_errors=True)

    def read_part(self, step: int, name: str) -> dict[str, Any]:
        """One file of a checkpoint. Raises FileNotFoundError when it is not there, CheckpointError when damaged."""
        path = self._named(step) / name
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            raise
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise CheckpointError(
                f"{path} is damaged, or holds more than tensors and plain values ({reason[:200]}); "
                f"remove {path.parent} to go on from the checkpoint before it"
            ) from None

    def folder_of(self, step: int) -> Path:
        """Returns the folder of a checkpoint."""
        return self._named(step)

    def about(self, step: int) -> CheckpointMeta:
        """Returns what the checkpoint of `step` may be used for; for nothing if that cannot be read."""
        try:
            return CheckpointMeta(**json.loads((self._named(step) / _ABOUT).read_bytes()))
        except (OSError, ValueError, TypeError):
            return CheckpointMeta(good=False, passing=False)

    def damage(self, step: int, rank: int = 0, processes: int = 1) -> list[str]:
        """Returns what is wrong with the files of a checkpoint; process `rank` of `processes` reads every so many-th
        file."""
        folder = self._named(step)
        try:
            lines = [line.split("  ", 1) for line in (folder / _SUMS).read_text(encoding="utf-8").splitlines()]
            checksums = sorted((name, checksum) for checksum, name in lines)
        except (OSError, ValueError) as error:
            return [f"{_SUMS} cannot be read ({getattr(error, 'strerror', None) or 'not a list of checksums'})"]
        found = []
        for name, checksum in checksums[rank::processes]:
            try:
                with (folder / name).open("rb") as file:
                    if hashlib.file_digest(file, "sha256").hexdigest() != checksum:
                        found.append(f"{name} does not have its checksum")
            except FileNotFoundError:
                found.append(f"{name} is missing")
            except OSError as error:
                found.append(f"{name} cannot be read ({error.strerror})")
        if not rank and "state.pt" not in dict(checksums):
            found.append(f"{_SUMS} does not name state.pt")
        return found

    def quarantine(self, step: int) -> Path:
        """Renames a damaged checkpoint, so that it is ignored."""
        aside = self.folder / f"damaged-step-{step:07d}"
        with writing(self.folder):
            shutil.rmtree(aside, ignore_errors=True)
            self._named(step).rename(aside)
        return aside

    def discard_after(self, step: int) -> None:
        """Removes checkpoints later than `step`, the latest first: after a rollback a run must not resume from them."""
        with writing(self.folder):
            for later in reversed(self.steps()):
                if later > step:
                    remove_folder(self._named(later))

    def _remove_old(self, wanted: set[int]) -> None:
        steps = self.steps()
        about = {step: self.about(step) for step in steps}
        lasting = [step for step in steps if not about[step].passing]
        good = [step for step in steps if about[step].good]
        for step in set(steps) - wanted - set(lasting[-self.keep :]) - set(good[-1:]):
            remove_folder(self._named(step))

    def _named(self, step: int) -> Path:
        return self.folder / f"step-{step:07d}"

    def _unfinished(self, step: int) -> Path:
        return self.folder / f".writing-step-{step:07d}"


class _Summing:
    """A file for torch.save that computes the checksum of the written bytes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._sum = hashlib.sha256()
        self._failure: OSError | None = None

    def save(self, state: dict[str, Any]) -> None:
        """torch.save, which makes a RuntimeError without a cause of what a full disk says. Raises OSError."""
        try:
            torch.save(state, self)  # type: ignore[arg-type]
        except RuntimeError:
            if self._failure is None:
                raise
            raise self._failure from None

    def write(self, content: bytes | memoryview) -> int:
        self._sum.update(content)
        try:
            return self._file.write(content)
        except OSError as error:
            self._failure = error
            raise

    def flush(self) -> None:
        self._file.flush()

    def checksum(self) -> str:
        return self._sum.hexdigest()


def collect(stateful: dict[str, Stateful]) -> dict[str, Any]:
    """Returns the state of every named object."""
    return {name: thing.state_dict() for name, thing in stateful.items()}


def restore(stateful: dict[str, Stateful], state: Mapping[str, Any], source: str) -> None:
    """Loads every named object. Raises CheckpointError if the names differ: the config is that of another run."""
    if stateful.keys() != state.keys():
        raise CheckpointError(
            f"{source} holds the state of {', '.join(sorted(state))}, this run has {', '.join(sorted(stateful))}: "
            "the config changed; use another run_dir"
        )
    for name, thing in stateful.items():
        try:
            thing.load_state_dict(state[name])
        except (RuntimeError, ValueError, KeyError) as error:
            lines = str(error).splitlines()
            reason = lines[min(1, len(lines) - 1)].strip()  # torch's first line only says that there are errors
            raise CheckpointError(
                f"{source}: {name} does not fit this config ({reason}); use another run_dir"
            ) from None
