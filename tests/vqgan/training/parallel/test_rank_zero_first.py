"""While the first process works alone the others wait as long as it lives, beyond any timeout of an exchange."""

from pathlib import Path

import pytest

from tests.two_processes import run_in_processes
from vqgan.training.parallel.distributed import build_accelerator
from vqgan.training.parallel.rank_zero_first import first_process_alone

_SCRIPT = Path(__file__).with_name("one_of_two_waiting.py")


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
    assert run_in_processes(_SCRIPT, [str(tmp_path), fate], said) == [0, 0], said.read_text()
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
