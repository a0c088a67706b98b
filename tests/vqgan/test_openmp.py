"""How OpenMP's threads wait: asleep in our commands and in a notebook, as the user says where the user says."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vqgan.openmp import SHORT_WAIT, wait_asleep

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY"])
def test_a_users_setting_wins(name: str) -> None:
    environment = {name: "user's"}
    assert not wait_asleep(environment, {})
    assert environment == {name: "user's"}


def test_nothing_is_done_where_torch_is_loaded_already() -> None:
    environment: dict[str, str] = {}
    assert not wait_asleep(environment, {"torch"})
    assert not environment
    assert wait_asleep(environment, {"numpy"})
    assert environment == SHORT_WAIT


def runtime(statement: str, **variables: str) -> str:
    """What OpenMP's runtime itself says of its settings in a new interpreter."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    environment = clean | variables | {"OMP_DISPLAY_ENV": "VERBOSE", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *statement.split(" ", 1)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="GNU's runtime alone shows it")
@pytest.mark.parametrize(
    ("start", "variables", "spins"),
    [
        ("-c import parti, torch", {}, 2000),
        ("-c import vqgan, torch", {"GOMP_SPINCOUNT": "77"}, 77),
        ("tools/plan.py --help", {}, 2000),
    ],
)
def test_the_runtime_has_read_it(start: str, variables: dict[str, str], spins: int) -> None:
    if "GOMP_SPINCOUNT" not in (shown := runtime(start.replace("tools/", f"{ROOT}/tools/"), **variables)):
        pytest.skip("this torch links another OpenMP")
    assert f"GOMP_SPINCOUNT = '{spins}'" in shown
