"""Identity of a run: what its weights depend on, recorded in each checkpoint and compared when the run resumes.

A run reads frozen networks by their paths (an image tokenizer, a text encoder, perceptual weights), and settings that
no tensor shows (heads, a kernel, a norm) determine the meaning of its weights. If one of them is replaced, everything
still loads but trains as another model: so it is refused, with the old value, the new one, and a hint.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqgan.config.changes import changes
from vqgan.fingerprints import FrozenPart, file_fingerprint
from vqgan.system.checksums import noted_files
from vqgan.training.checkpoints.store import CheckpointError

IDENTITY_FILE = "identity.json"
_ANOTHER_RUN = "or choose another run_dir"
_SHOWN = 3
"""Formats changed settings in one line."""


@dataclass(frozen=True)
class Identity:
    """Of a run as it is started: its fixed settings, its frozen parts, and the files of its folder that it trains by
    (a vocabulary)."""

    settings: Mapping[str, Any]
    frozen: Mapping[str, FrozenPart]
    folder: Path

    def content(self) -> bytes:
        """Returns the state for a checkpoint, without paths and folder names, which may change."""
        frozen = {name: dict(part.fingerprints) for name, part in self.frozen.items()}
        values = {"settings": dict(self.settings), "frozen": frozen, "files": self._files(noted_files(self.folder))}
        return (json.dumps(values, indent=1, sort_keys=True) + "\n").encode()

    def compare(self, content: bytes) -> list[str]:
        """Returns what a checkpoint kept, with what is now: lines about what may differ and does.

        Raises CheckpointError, one line, where it belongs to other settings, frozen parts or files.
        """
        before = json.loads(content)
        self.compare_settings(before["settings"])
        for name, checksum in self._files(before["files"]).items():
            if checksum != before["files"][name]:
                raise CheckpointError(
                    f"{self.folder / name} is not the one that this run was trained with"
                    f"{' (it is missing)' if not checksum else ''}; copy {self.folder / 'model' / name} over it, "
                    f"{_ANOTHER_RUN}"
                )
        return [line for name in self.frozen for line in self._compare_part(name, before["frozen"].get(name))]

    def compare_settings(self, before: Mapping[str, Any]) -> None:
        """Raises CheckpointError if a fixed setting has changed."""
        if found := changes(before, self.settings):
            more = f" (and {len(found) - _SHOWN} more)" if len(found) > _SHOWN else ""
            raise CheckpointError(
                f"since the run in {self.folder} began, {', '.join(found[:_SHOWN])}{more}: its weights mean something "
                f"else with that; set it back, {_ANOTHER_RUN}"
            )

    def _compare_part(self, name: str, before: Mapping[str, str] | None) -> Iterator[str]:
        part = self.frozen[name]
        if before is None:  # it was not in use before, or an earlier version did not note it
            return
        now = part.fingerprints
        differing = [what for what in now if what in before and before[what] != now[what]]
        if not differing:
            return
        was_and_is = ", ".join(f"{what} was {before[what]} and is {now[what]}" for what in differing)
        if not part.is_only_shown:
            remedy = f" ({part.remedy})" if part.remedy else ""
            raise CheckpointError(
                f"{name}: the run in {self.folder} was trained with another one, which was replaced or trained on "
                f"since: {was_and_is}; put the former one back{remedy}, {_ANOTHER_RUN}"
            )
        yield f"{name} is another one than before ({was_and_is}); what it draws looks different, training is the same"

    def _files(self, names: Any) -> dict[str, str]:
        """Returns the current checksums of files; "" for a missing one."""
        paths = {name: self.folder / name for name in sorted(names)}
        return {name: file_fingerprint(path) if path.is_file() else "" for name, path in paths.items()}
