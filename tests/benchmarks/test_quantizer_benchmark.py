"""benchmarks/quantizer.py runs, and what it compares are the same codes."""

import importlib
import importlib.util
import json
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_every_baseline_finds_the_same_codes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))  # as for a script: it imports its neighbor by name
    benchmark = importlib.import_module("quantizer")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)  # the peer is optional, and slow to import
    out = tmp_path / "new" / "metrics.json"
    small = ["--batch=2", "--vectors=64", "--codes=200", "--dim=8", "--rounds=3", "--without-memory", f"--json={out}"]
    with torch.enable_grad():  # puts back what the script sets for its process
        assert benchmark.main(small) == 0
    record = json.loads(out.read_text())
    assert record["setting"]["codes"] == 200
    same = {row["what"]: row["same_codes"] for row in record["rows"]}
    assert same.pop("matrix product alone") is None
    assert set(same.values()) == {1.0}
    assert {row["times_ours"] for row in record["rows"] if "ours" in row["what"]} == {1.0}
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 1 + len(record["rows"])
