"""The folder that a run lives in.

config.yaml (resolved), metrics.jsonl (always), samples/, checkpoints/step-XXXXXXX/, model/ (what is shipped).
"""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from PIL import Image

from vqgan.config import Config, dump_config


class RunFolder:
    """Paths of a run and the files that only grow."""

    def __init__(self, path: str | Path, config: Config | None = None) -> None:
        self.path = Path(path)
        self._config = config
        self.metrics = self.path / "metrics.jsonl"
        self.samples = self.path / "samples"
        self.checkpoints = self.path / "checkpoints"
        self.model = self.path / "model"

    def create(self) -> None:
        """Make the folder."""
        self.samples.mkdir(parents=True, exist_ok=True)

    def write_config(self) -> None:
        """Write the resolved config; not before it is known to fit the checkpoints that are there."""
        if self._config is not None:
            (self.path / "config.yaml").write_text(dump_config(self._config), encoding="utf-8")

    def append_metrics(self, record: Mapping[str, object]) -> None:
        """Add one line to metrics.jsonl."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def read_metrics(self) -> list[dict[str, object]]:
        """All records so far. A last line that was cut off by a kill is left out."""
        if not self.metrics.is_file():
            return []
        records = []
        for line in self.metrics.read_text(encoding="utf-8").splitlines():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return records

    def forget_metrics_after(self, step: int) -> None:
        """Drop records later than `step`: a resumed run writes them again."""
        kept = [record for record in self.read_metrics() if int(str(record["step"])) <= step]
        fresh = self.metrics.with_name(".metrics-new")
        fresh.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
        fresh.replace(self.metrics)

    def forget_checkpoints_after(self, step: int) -> None:
        """Remove checkpoints later than `step`: a run that went back must not resume from them."""
        for folder in self.checkpoints.glob("step-*"):
            if int(folder.name.removeprefix("step-")) > step:
                shutil.rmtree(folder)

    def save_picture(self, picture: Image.Image, step: int) -> Path:
        """Store a preview as samples/step-XXXXXXX.png."""
        path = self.samples / f"step-{step:07d}.png"
        picture.save(path)
        return path

    def replace_model(self, write: Callable[[Path], None]) -> None:
        """Let `write` fill a new folder, then put it in the place of model/."""
        fresh, old = self.path / ".model-new", self.path / ".model-old"
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
        fresh.mkdir(parents=True)
        write(fresh)
        if self.model.exists():
            self.model.rename(old)
        fresh.rename(self.model)
        shutil.rmtree(old, ignore_errors=True)
