"""benchmarks/busy_machine.py: what it concludes from its contenders' times, and that the contenders run."""

import importlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TINY = ["--rounds=2", "--turn=0.01", "--busy=2", "--batch=2", "--threads=2"]


class Timed:
    """A contender of known speed."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def seconds_a_step(self, _: float) -> float:
        return self._seconds


@pytest.mark.parametrize(("shipped", "code"), [(1.02, 0), (1.04, 1), (2.3, 1)])
def test_its_exit_code_is_its_claim(
    shipped: float, code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    @contextmanager
    def baseline(first: str, *_: object) -> Iterator[Timed]:
        yield Timed(shipped if first == "parti" else 1.0)

    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("busy_machine")
    monkeypatch.setattr(module, "baseline", baseline)
    monkeypatch.setattr(module, "busy_share", lambda _: 0.2)
    assert module.main([*TINY, "--json", str(tmp_path / "metrics.json")]) == code
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["idle_cost"] == pytest.approx(shipped - 1)
    assert metrics["kept_beside_one"] == pytest.approx(1 / shipped)
    shown = capsys.readouterr().out
    assert ("\nnot both hold" in shown) is bool(code)
    assert "was not quiet (others took 20% of it)" in shown


@pytest.mark.slow
def test_it_measures_every_baseline_beside_nothing_one_and_several(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("busy_machine")
    code = module.main([*TINY, "--spin=1000", "--json", str(tmp_path / "new/metrics.json")])
    metrics = json.loads((tmp_path / "new/metrics.json").read_text())
    assert set(metrics["seconds_a_step"]) == {"0", "1", "2"}
    for timings in metrics["seconds_a_step"].values():
        assert set(timings) == {"torch's default", "shipped", "spins 1000"}
        assert all(seconds > 0 for found in timings.values() for seconds in found)
    shown = capsys.readouterr().out
    holds = metrics["idle_cost"] < 0.03 and metrics["kept_beside_one"] >= 0.45
    assert code == (0 if holds else 1)
    assert ("\nboth hold" if holds else "\nnot both hold") in shown
    assert ("was not quiet" in shown) == (metrics["elsewhere"] > 0.05)


def test_one_thread_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    with pytest.raises(SystemExit, match="one thread waits for nobody"):
        importlib.import_module("busy_machine").main(["--threads=1"])
