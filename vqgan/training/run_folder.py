"""The folder that a run lives in.

config.yaml (resolved), metrics.jsonl (always), samples/, checkpoints/step-XXXXXXX/, model/ (what is shipped), best/,
the model of the best evaluation, where it is asked for, and report.html, once it is complete. All but metrics.jsonl
change whole or not at all; that one grows, and a checkpoint knows how long it was.
"""

import io
import json
import shutil
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from vqgan.config.changes import GIVEN, NONE, fixed_settings
from vqgan.config.schema import Config, ConfigError, dump_config, flatten, read_yaml
from vqgan.system.atomic_files import recover_folder, replaced_folder, sync_tree, write_file, writing

BEST_FILE = "best.json"
"""In best/: which evaluation it was."""
_LINES_NAMED = 8


class RunFolder:
    """Paths of a run and the files in it. What writes raises CannotWriteError."""

    def __init__(self, path: str | Path, config: Config | None = None) -> None:
        self.path = Path(path)
        self._config = config
        self.metrics = self.path / "metrics.jsonl"
        self.samples = self.path / "samples"
        self.checkpoints = self.path / "checkpoints"
        self.model = self.path / "model"
        self.best = self.path / "best"

    def create(self) -> None:
        """Make the folder."""
        with writing(self.path):
            self.samples.mkdir(parents=True, exist_ok=True)

    def recover(self) -> None:
        """Put right what a kill has left half done."""
        with writing(self.path):
            recover_folder(self.model)
            recover_folder(self.best)

    def write_config(self) -> None:
        """Write the resolved config; not before it is known to fit the checkpoints that are there."""
        if self._config is None:
            return
        with writing(self.path / "config.yaml"):
            # What lies beside it, a vocabulary, is on the disk first: a recorded config says that the run has begun.
            for path in self.path.iterdir():
                if path.is_file():
                    sync_tree(path)
            write_file(self.path / "config.yaml", dump_config(self._config).encode())

    def fixed_settings(self) -> dict[str, Any]:
        """Returns what of the config decides what the weights mean."""
        return {} if self._config is None else fixed_settings(self._config)

    def recorded_settings(self) -> dict[str, Any]:
        """Returns the same of the recorded config, as far as it has it; for checkpoints of an earlier version."""
        path = self.path / "config.yaml"
        if not path.is_file():
            return {}
        now = self.fixed_settings()
        recorded = flatten(read_yaml(path))
        for name, value in now.items():  # a section that may be null
            if value in (GIVEN, NONE) and recorded.get(name) == str(None):
                recorded[name] = NONE
        # As text, as `flatten` makes it of lists.
        return {
            name: recorded[name] if str(recorded.get(name, value)) != str(value) else value
            for name, value in now.items()
        }

    def changed_settings(self) -> list[str]:
        """Returns what the recorded config says otherwise than this one, a line each; where this one was not recorded
        yet."""
        path = self.path / "config.yaml"
        if self._config is None or not path.is_file():
            return []
        try:
            recorded = read_yaml(path)
        except ConfigError as error:
            return [f"the record of its settings was damaged, and is written anew ({error})"]
        before, now = flatten(recorded), flatten(self._config.model_dump(mode="json"))
        names = [name for name in now if name in before and before[name] != now[name] and name != "run_dir"]
        return [f"{name} was {before[name]} and is {now[name]}" for name in names]

    def append_metrics(self, record: Mapping[str, object]) -> None:
        """Add one line to metrics.jsonl."""
        with writing(self.metrics), self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def read_metrics(self) -> list[dict[str, object]]:
        """All records so far. A last line that was cut off by a kill, or one that was damaged, is left out."""
        if not self.metrics.is_file():
            return []
        records = []
        for line in self.metrics.read_bytes().split(b"\n"):
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict):
                records.append(record)
        return records

    def metrics_lines(self) -> list[int]:
        """Returns a checksum of each line of metrics.jsonl."""
        if not self.metrics.is_file():
            return []
        return [zlib.crc32(line) for line in self.metrics.read_bytes().splitlines(keepends=True)]

    def damaged_metrics(self, length: int, checksums: Sequence[int]) -> list[str]:
        """Returns a line about those of the first `length` bytes of metrics.jsonl whose lines do not have their
        `checksums`."""
        content = b""
        if self.metrics.is_file():
            with self.metrics.open("rb") as file:
                content = file.read(length)
        there = Counter(zlib.crc32(line) for line in content.splitlines(keepends=True))
        lost = []
        for number, checksum in enumerate(checksums, start=1):
            if there[checksum] == 0:
                lost.append(number)
            there[checksum] -= there[checksum] > 0
        if not lost:
            return []
        which = ", ".join(map(str, lost[:_LINES_NAMED])) + (", ..." if len(lost) > _LINES_NAMED else "")
        return [
            f"{self.metrics}: {len(lost)} of its {len(checksums)} lines are not as they were written (lines {which}); "
            "their record is lost, training does not depend on it"
        ]

    def metrics_bytes(self) -> int:
        """Returns the length of metrics.jsonl, which is on the disk from now on."""
        if not self.metrics.is_file():
            return 0
        with writing(self.metrics):
            sync_tree(self.metrics)
        return self.metrics.stat().st_size

    def cut_metrics(self, length: int) -> None:
        """Drop what was written after the first `length` bytes: a resumed run writes it again."""
        with writing(self.metrics), self.metrics.open("ab+") as file:
            file.seek(0)
            # To the end of a line, should someone have edited the file.
            file.truncate(file.read(length).rfind(b"\n") + 1)

    def save_image(self, image: Image.Image, step: int, name: str = "step") -> Path:
        """Store a preview as samples/step-XXXXXXX.png, or another image by its `name`."""
        path = self.samples / f"{name}-{step:07d}.png"
        content = io.BytesIO()
        image.save(content, format="PNG")
        with writing(path):
            write_file(path, content.getvalue())
        return path

    def replace_model(self, write: Callable[[Path], object]) -> None:
        """Let `write` fill a new folder, then put it in the place of model/."""
        with writing(self.model), replaced_folder(self.model) as folder:
            write(folder)

    def ship_best(self) -> None:
        """Put the model of best/ in the place of model/; nothing where somebody has removed best/."""
        if self.best.is_dir():
            without = shutil.ignore_patterns(BEST_FILE)
            self.replace_model(lambda folder: shutil.copytree(self.best, folder, ignore=without, dirs_exist_ok=True))

    def replace_best(self, write: Callable[[Path], None], evaluation: Mapping[str, object]) -> None:
        """The same for best/, which `evaluation` describes."""
        with writing(self.best), replaced_folder(self.best) as folder:
            write(folder)
            (folder / BEST_FILE).write_text(json.dumps(evaluation) + "\n", encoding="utf-8")
