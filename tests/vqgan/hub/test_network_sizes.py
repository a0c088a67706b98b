"""Every size in every run's config, set to 2,147,483,648: one line before a network takes memory or time."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from parti.objectives import OBJECTIVES
from tests.network_sizes import BUILDS, PAPERS, SMALL

ROOT = Path(__file__).parents[3]
SECONDS, MEGABYTES = 4.0, 1024
"""Processor time of the slowest was 1.8 s beside twelve busy processes."""
HARMLESS = ("stddev_group", "kernel", "encoder.base_channels", "encoder.most_channels")
"""How numbers end that make no tensor larger."""


DAILY = {"vqgan/vit_vqgan_large", "parti/shapes", "parti/parti_20b", "mim/mae_shapes", "mim/simmim_shapes"}
"""The quick ones, some of each kind of network; the others are slow."""


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(DAILY, id="daily"),
        pytest.param((SMALL.keys() | PAPERS.keys()) - DAILY, id="others", marks=pytest.mark.slow),
    ],
)
def test_a_huge_size_is_one_line(names: set[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.network_sizes", str(tmp_path), *sorted(names)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["peak_kilobytes"] < MEGABYTES << 10
    assert {name for name, *_ in answer["refusals"]} >= names & SMALL.keys()
    assert len(answer["refusals"]) >= 25
    for name, path, said, seconds in answer["refusals"]:
        assert "\n" not in said, (name, path, said)
        assert len(said) < 1200, (name, path)
        assert said != "built" or path.endswith(HARMLESS), (name, path)
        assert seconds < SECONDS, (name, path, said, seconds)


def test_every_run_is_asked() -> None:
    assert {objective.config_type for objective in OBJECTIVES.values()} <= set(SMALL.values())
    assert set(SMALL.values()) == set(BUILDS)
