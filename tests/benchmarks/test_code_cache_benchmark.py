"""benchmarks/code_cache.py runs, and prints right rates and sizes."""

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.tiny_runs import untrained_tokenizer

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SMALL = ["--images=16", "--rounds=2", "--steps=1", "--", "--data.transform.image_size=32", "--data.batch_size=8"]
SMALL += ["--model.encoder_depth=1", "--model.decoder_depth=1", "--model.width=16", "--model.heads=2"]


@pytest.fixture
def benchmark_(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))  # as for a script: it imports its neighbors by name
    threads = torch.get_num_threads()
    # By its file: the tests have a folder of the same name.
    spec = importlib.util.spec_from_file_location("code_cache_benchmark", BENCHMARKS / "code_cache.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    yield module
    torch.set_num_threads(threads)


def test_rates_and_sizes(benchmark_: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ticks = iter(range(0, 1000, 2))  # two seconds a round, whoever's it is
    monkeypatch.setattr(benchmark_.time, "process_time", lambda: float(next(ticks)))
    tokenizer, out = untrained_tokenizer(tmp_path / "tokenizer"), tmp_path / "metrics.json"
    assert benchmark_.main([f"--tokenizer={tokenizer}", f"--json={out}", *SMALL]) == 0
    metrics = json.loads(out.read_text())
    assert metrics["images_per_cpu_second"] == {"images": 4.0, "codes": 4.0}
    assert metrics["times"] == 1.0
    assert metrics["bytes"]["codes"] == 16
    assert metrics["bytes"]["all"] > 16 + 2 * 16, "codes, and two bytes for each of 16 text ids"
    assert metrics["beside_others"]["of"] == 8 * 16
