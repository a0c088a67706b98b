"""torchvision, timm and lpips can be imported, whether or not torchvision's compiled library loads."""

import importlib.util
import subprocess
import sys
import sysconfig
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from vqgan.system import torchvision_ops
from vqgan.system.torchvision_ops import declare_missing_torchvision_ops, repair_environment


@pytest.mark.parametrize("package", ["vqgan", pytest.param("parti", marks=pytest.mark.slow)])
def test_importing_a_package_is_enough(package: str) -> None:
    """In an interpreter without start-up files, so that nothing but the package may have helped."""
    program = f"""
import sys
sys.path += [{str(Path(__file__).parents[3])!r}, {sysconfig.get_path("purelib")!r}]
import {package}
assert "torch" not in sys.modules, "importing the package must stay fast"
import timm, lpips, torchvision
timm.create_model, torchvision.models.squeezenet1_1
"""
    done = subprocess.run(
        [sys.executable, "-S", "-c", program], capture_output=True, text=True, timeout=120, check=False
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
    monkeypatch.setattr(torch.ops, "torchvision", SimpleNamespace(), raising=False)  # nothing declared so far
    return names


def test_nothing_is_declared_where_the_library_loads(declared: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    monkeypatch.setattr(torch.ops, "load_library", loaded.append)
    assert declare_missing_torchvision_ops() is False
    assert [Path(path).name for path in loaded] == ["_C.so"]
    assert declared == []


def test_operators_are_declared_where_it_does_not(declared: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_path: str) -> None:
        raise OSError("libcudart.so: cannot open shared object file")

    monkeypatch.setattr(torch.ops, "load_library", missing)
    assert declare_missing_torchvision_ops() is True
    assert "torchvision::nms" in declared


def test_what_is_declared_already_stays(declared: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_path: str) -> None:
        raise OSError("libcudart.so: cannot open shared object file")

    monkeypatch.setattr(torch.ops, "load_library", missing)
    monkeypatch.setattr(torch.ops, "torchvision", SimpleNamespace(nms=None, qnms=None))
    assert declare_missing_torchvision_ops() is True
    assert declared == []


def test_without_torchvision_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    assert declare_missing_torchvision_ops() is False


def test_an_environment_is_repaired_only_if_it_needs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision_ops, "declare_missing_torchvision_ops", lambda: False)
    assert not repair_environment(tmp_path)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(torchvision_ops, "declare_missing_torchvision_ops", lambda: True)
    assert repair_environment(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"_torchvision_ops.pth", "_torchvision_ops.py"}


def test_start_up_lets_programs_of_others_import_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an interpreter that processes no start-up files of its own: what ours does, and nothing else does."""
    monkeypatch.setattr(torchvision_ops, "declare_missing_torchvision_ops", lambda: True)
    repair_environment(tmp_path)
    program = f"""
import sys
sys.path += [{str(tmp_path)!r}, {sysconfig.get_path("purelib")!r}]
{(tmp_path / "_torchvision_ops.pth").read_text()}
assert "torch" not in sys.modules, "starting an interpreter must stay fast"
import timm
"""
    done = subprocess.run(
        [sys.executable, "-S", "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
