"""torchvision, timm and lpips can be imported, whether or not torchvision's compiled library loads."""

import importlib.util
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import torch

from vqgan.torchvision_ops import declare_missing_torchvision_ops

declare = declare_missing_torchvision_ops.__wrapped__  # without the memory of an earlier call in this process


def test_everything_imports_in_a_fresh_process() -> None:
    program = """
from vqgan.torchvision_ops import declare_missing_torchvision_ops as declare
first = declare()
assert declare() is first
import torchvision, timm, lpips
assert declare() is first
torchvision.models.squeezenet1_1
timm.create_model
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture
def declared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The operators that get declared, in an installation with one compiled library."""
    names: list[str] = []
    (tmp_path / "_C.so").touch()
    spec = ModuleSpec("torchvision", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: spec)
    monkeypatch.setattr(torch.library, "define", lambda name, _schema: names.append(name))
    return names


def test_nothing_is_declared_where_the_library_loads(declared: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    monkeypatch.setattr(torch.ops, "load_library", loaded.append)
    assert declare() is False
    assert [Path(path).name for path in loaded] == ["_C.so"]
    assert declared == []


def test_operators_are_declared_where_it_does_not(declared: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_path: str) -> None:
        raise OSError("libcudart.so: cannot open shared object file")

    monkeypatch.setattr(torch.ops, "load_library", missing)
    assert declare() is True
    assert "torchvision::nms" in declared


def test_without_torchvision_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    assert declare() is False
