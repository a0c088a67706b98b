"""While the first process works alone the others wait as long as it lives, beyond any timeout of an exchange."""

import os
import time
from pathlib import Path

import pytest

from tests.two_processes import run_in_processes
from vqgan.training.parallel import rank_zero_first as first_process
from vqgan.training.parallel.distributed import RankFailure, build_accelerator
from vqgan.training.parallel.rank_zero_first import first_process_alone

SECONDS = 3.0
"""After which an exchange between the processes gives up."""


def one_of_two(name: str, fate: str) -> None:
    """What the first process does: works, fails, hangs."""
    folder = Path(name)
    first_process._BEAT = 60.0 if fate == "hangs" else 0.2
    accelerator = build_accelerator(SECONDS / 60)
    try:
        with first_process_alone(accelerator, folder, SECONDS / 60) as to_be_made:
            if to_be_made:
                time.sleep(0.5 if fate == "fails" else 1.5 * SECONDS)
                if fate == "fails":
                    raise ZeroDivisionError("of the work itself")
                (folder / "made").write_text("by the first")
        said = (folder / "made").read_text()
    except RankFailure as lost:
        said = str(lost)
    except ZeroDivisionError as error:
        said = str(error)
    (folder / f"said-{os.environ['RANK']}.txt").write_text(said)


@pytest.mark.parametrize(
    ("fate", "first", "second"),
    [
        ("works", "by the first", "by the first"),
        ("fails", "of the work itself", "as the first process ended with an error; see what that one said"),
        ("hangs", None, "as the first process has shown no sign of life for 0.05 minutes"),
    ],
)
def test_the_others_wait_as_long_as_the_first_lives(fate: str, first: str | None, second: str, tmp_path: Path) -> None:
    said = tmp_path / "said.txt"
    assert run_in_processes(one_of_two, tmp_path, fate, said=said) == [0, 0], said.read_text()
    if first is not None:
        assert (tmp_path / "said-0.txt").read_text() == first
    found = (tmp_path / "said-1.txt").read_text()
    assert second in found
    assert "\n" not in found
    if fate == "works":
        assert {path.name for path in tmp_path.iterdir()} == {"made", "said-0.txt", "said-1.txt", "said.txt"}


def test_alone_a_process_does_it_at_once(tmp_path: Path) -> None:
    with first_process_alone(build_accelerator(), tmp_path) as to_be_made:
        assert to_be_made
        assert not list(tmp_path.iterdir())
