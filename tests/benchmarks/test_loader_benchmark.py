"""benchmarks/loader.py runs, gives every contender the same work, and prints right rates."""

import importlib
import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark_(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))  # as for a script: it imports its neighbors by name
    return importlib.import_module("loader")


def test_folder_and_tar_without_webdataset(
    benchmark_: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found(name) if name != "webdataset" else None)
    out = tmp_path / "new" / "metrics.json"
    small = ["--sizes", "40x30", "--images=48", "--image-size=16", "--batch=4", "--batches=2", "--rounds=1"]
    small += ["--only", "folder", "tar"]  # `datasets` takes seconds to open a file
    assert benchmark_.main([*small, "--workers", "0", f"--data={tmp_path}", f"--json={out}"]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert {row["form"] for row in rows} == {"folder", "tar"}
    for row in rows:
        assert row["images_per_second"] == pytest.approx(8 / row["seconds"])
        if row["who"] == "ours":
            assert row["times_ours"] == 1
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 1 + len(rows)
    assert "without webdataset" in printed.err
    files = sorted(path.name for path in (tmp_path / "40x30-48" / "files").iterdir())
    assert len(files) == 2 * 48
