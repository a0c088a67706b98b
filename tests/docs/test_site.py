"""The site of docs/ builds without a warning, finds the API, and asks no other machine for anything."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("zensical")
    folder = tmp_path_factory.mktemp("docs")
    for name in ("docs", "vqgan", "parti"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "zensical.toml", folder)
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "site"


def test_api_pages_hold_signatures_and_docstrings(site: Path) -> None:
    page = (site / "api" / "quantizers.html").read_text(encoding="utf-8")
    assert "vqgan.quantizers.finite_scalar.FiniteScalarQuantizer" in page
    assert "2309.15505" in page  # from the docstring of the module


def test_the_search_finds_pages_and_the_api(site: Path) -> None:
    index = json.dumps(json.loads((site / "search.json").read_text(encoding="utf-8")))
    for words in ("FiniteScalarQuantizer", "guidance_scale", "resume"):
        assert words in index


def test_pages_load_nothing_from_other_machines(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=[\"']?([^\"' >]+)", text)
        loaded += re.findall(r"<link\b(?![^>]*rel=[\"']?canonical)[^>]*\bhref=[\"']?([^\"' >]+)", text)
        assert not [address for address in loaded if re.match(r"(https?:)?//", address)], page
