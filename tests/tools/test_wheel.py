"""An installation without a checkout: the command `parti`, and the shipped configs by name."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SOURCES = ("vqgan", "parti", "configs", "pyproject.toml", "README.md", "LICENSE")
TINY = """--loop.steps 1 --data.batch_size 4 --data.val_limit 4 --data.source.train_size 8 --data.source.val_size 4
    --model.encoder.depth 1 --model.decoder.depth 1 --model.quantizer.codebook_size 32 --run_dir run"""


def pip(*words: str) -> None:
    environment = os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pip", *words, "--no-deps"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the sources, in which the build may leave what it likes."""
    pytest.importorskip("setuptools", minversion="77", reason="builds without fetching anything")
    copy, out = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, copy / name)
    pip("wheel", str(copy), "--no-build-isolation", "--wheel-dir", str(out))
    (file,) = out.glob("*.whl")
    return file


def test_the_wheel_has_every_module_config_and_type_marker(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {
        path.relative_to(ROOT).as_posix() for package in ("vqgan", "parti") for path in (ROOT / package).rglob("*.py")
    }
    configs = {
        f"vqgan/config/shipped/{path.relative_to(ROOT / 'configs')}" for path in (ROOT / "configs").rglob("*.yaml")
    }
    assert (
        modules
        | configs
        | {"vqgan/py.typed", "parti/py.typed", "parti/report/demo.html.jinja", "vqgan/report/base.html.jinja"}
        <= names
    )
    assert not any(name.startswith(("tests/", "tools/", "configs/")) for name in names)


@pytest.mark.slow
def test_an_installation_in_an_empty_folder_trains_a_shipped_config(wheel: Path, tmp_path: Path) -> None:
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    pip("install", str(wheel), "--target", str(site))

    def parti(*words: str) -> "subprocess.CompletedProcess[str]":
        environment = os.environ | {"PYTHONPATH": str(site)}
        command = [sys.executable, str(site / "bin" / "parti"), *words]
        return subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True, check=False)

    assert "check-data" in parti("--help").stdout
    done = parti("train", "--config", "vqgan/shapes", *TINY.split())
    assert done.returncode == 0, done.stderr
    written = yaml.safe_load((elsewhere / "run" / "config.yaml").read_text(encoding="utf-8"))
    assert (written["objective"], written["loop"]["steps"]) == ("image_tokenizer", 1)
    assert (elsewhere / "run" / "model" / "model.safetensors").is_file()
    wrong = parti("train", "--config", "vqgan/shape")
    assert wrong.returncode == 2
    assert wrong.stderr == (
        "error: 'vqgan/shape' is neither a config file nor the name of a shipped config; nearest: vqgan/shapes, "
        "vqgan/shapes_cnn, vqgan/shapes_dvae\n"
    )
