"""What a run's weights depend on beside themselves: noted in each checkpoint, compared when the run goes on.

A run reads frozen networks by their paths (an image tokenizer, a text encoder, perceptual weights), and settings that
show in no tensor (heads, a kernel, a norm) decide what its weights mean. Where one of them was exchanged, everything
still loads, and trains on as another model: so it is refused, with what was, what is, and the remedy.
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
"""Changed settings in a line."""


@dataclass(frozen=True)
class Identity:
    """Of a run as it is started: its fixed settings, its frozen parts, and the files of its folder that it trains by
    (a vocabulary)."""

    settings: Mapping[str, Any]
    frozen: Mapping[str, FrozenPart]
    folder: Path

    def content(self) -> bytes:
        """Returns what a checkpoint keeps of it: neither paths nor names of folders, which may change."""
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
        """Raises CheckpointError where one that is fixed has changed."""
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
        """Their checksums now; "" for one that is not there."""
        paths = {name: self.folder / name for name in sorted(names)}
        return {name: file_fingerprint(path) if path.is_file() else "" for name, path in paths.items()}
