"""Settings of the whole test run."""

import os

import jaxtyping
import pytest
import torch

# The tests' tensors are tiny: threads would cost more than they give, most of all on a busy machine. Processes that a
# test starts have one thread each, whatever this run has.
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


@pytest.fixture
def shapes_unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of errors about a wrong shape: the annotation, which the test run checks, would speak first."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
