"""What the tests of interrupted runs share."""

from collections.abc import Iterator

import pytest

from tests.killed_runs import Commands, command_server


@pytest.fixture(scope="session")
def commands() -> Iterator[Commands]:
    """One warmed server for all of them."""
    with command_server() as commands:
        yield commands
