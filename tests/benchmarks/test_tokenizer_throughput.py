"""benchmarks/tokenizer_throughput.py runs, compares networks of the same size, and prints right rates."""

import importlib
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SMALL = ["--image-size=32", "--width=32", "--depth=1", "--codes=16", "--batch=2", "--rounds=2", "--threads=1"]


@pytest.fixture
def benchmark_(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))  # as for a script: it imports its neighbor by name
    return importlib.import_module("tokenizer_throughput")


def setting(module: ModuleType) -> object:
    return module.Setting(
        image_size=32,
        patch_size=8,
        width=32,
        depth=1,
        codes=16,
        channels=32,
        batch=2,
        precision="fp32",
        compiled=False,
        device=torch.device("cpu"),
    )


def test_without_peers_ours_remain(
    benchmark_: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The peers are optional, and slow to import."""
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found(name) if name == "vqgan" else None)
    out = tmp_path / "new" / "metrics.json"
    only = ["ViT: encode + decode", "ViT: step, reconstruction", "CNN: step, reconstruction"]
    assert benchmark_.main([*SMALL, "--precisions", "fp32", f"--json={out}", "--only", *only]) == 0
    record = json.loads(out.read_text())
    assert record["setting"]["width"] == 32
    assert [row["comparison"] for row in record["rows"]] == only
    for row in record["rows"]:
        assert row["times_ours"] == 1
        assert row["images_per_second"] == pytest.approx(2 / row["seconds"])
        assert row["parameters"] > 0
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 1 + len(only)
    assert "without diffusers" in printed.err
    assert "without parti_pytorch" in printed.err


def test_r1_counts_with_its_share_of_the_steps(benchmark_: ModuleType) -> None:
    mean = benchmark_.amortized(benchmark_.Timing((1.0, 2.0)), benchmark_.Timing((17.0, 18.0)))
    assert mean.seconds == pytest.approx((2.0, 3.0))


def test_the_cnns_have_the_same_parameters(benchmark_: ModuleType) -> None:
    """Or the same names would stand for other networks."""
    pytest.importorskip("diffusers")
    ours, theirs = benchmark_.our_cnn_step(setting(benchmark_)), benchmark_.vq_model_step(setting(benchmark_))
    assert ours.parameters == theirs.parameters


def test_our_discriminator_has_a_width_for_every_level(benchmark_: ModuleType) -> None:
    for size, levels in [(32, 4), (64, 5), (256, 7)]:
        sized = benchmark_.Setting(**(vars(setting(benchmark_)) | {"image_size": size, "width": 128}))
        widths = sys.modules["tokenizer_baselines"].discriminator_channels(sized)
        assert len(widths) == levels
        assert widths[-1] == 7 * 128
        assert list(widths) == sorted(widths)
