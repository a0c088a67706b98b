"""Settings of the whole test run."""

import os
import re
import urllib.error
from pathlib import Path

import jaxtyping
import pytest
import torch

# The tests' tensors are tiny: threads would cost more than they give, most of all on a busy machine. Processes that a
# test starts have one thread each, whatever this run has.
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """A pass over one kind of marked tests imports the files alone in which the mark stands."""
    first = config.option.markexpr.partition(" and ")[0]
    if not re.fullmatch(r"(slow_)?threads( or (slow_)?threads)*", first) or not collection_path.match("test_*.py"):
        return None
    text = collection_path.read_text(encoding="utf-8")
    return None if re.search(rf"mark\.({first.replace(' or ', '|')})\b", text) else True


@pytest.fixture
def shapes_unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of errors about a wrong shape: the annotation, which the test run checks, would speak first."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache folder and a network that answers nothing."""

    def fail(url: str, *_: object, **__: object) -> None:
        raise urllib.error.URLError(f"no network for {url}")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    return tmp_path / "hub" / "checkpoints"
