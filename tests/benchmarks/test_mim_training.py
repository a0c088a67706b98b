"""benchmarks/mim_training.py runs, both sides compute the same loss, and its rates are those of its seconds."""

import importlib
import json
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SMALL = ["--image-size=48", "--patch-size=8", "--width=32", "--depth=1", "--heads=2", "--masked=14", "--batch=2"]


def test_both_sides_are_timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("mim_training")
    threads, out = torch.get_num_threads(), tmp_path / "new" / "metrics.json"
    assert module.main([*SMALL, "--rounds=2", "--json", str(out)]) == 0
    torch.set_num_threads(threads)
    rows = json.loads(out.read_text())["rows"]
    assert {(row["method"], row["who"]) for row in rows} == {
        (method, who) for method in ("mae", "simmim", "beit") for who in ("ours", "transformers")
    }
    for row in rows:
        assert row["images_per_second"] == pytest.approx(2 / row["seconds"])
        assert row["times_ours"] == 1 if row["who"] == "ours" else row["times_ours"] > 0
    monkeypatch.setattr(module, "to_imagenet", lambda images: images)
    with pytest.raises(SystemExit, match="these are not the same networks"):
        module.main([*SMALL, "--only", "mae", "--rounds=2"])
