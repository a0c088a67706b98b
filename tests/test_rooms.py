"""The tests mirror the packages: a folder of tests is a folder of the package, and shared modules have one home."""

from pathlib import Path

import pytest

TESTS = Path(__file__).parent
ROOMS = [folder for package in ("vqgan", "parti") for folder in [TESTS / package, *(TESTS / package).rglob("*/")]]


@pytest.mark.parametrize(
    "room",
    [room for room in ROOMS if any(room.glob("*.py"))],
    ids=lambda room: room.relative_to(TESTS).as_posix(),
)
def test_each_folder_of_tests_is_a_folder_of_the_package(room: Path) -> None:
    assert (TESTS.parent / room.relative_to(TESTS) / "__init__.py").is_file()


def test_no_test_lies_outside_of_the_rooms() -> None:
    others = {"tools", "benchmarks", "configs", "docs"}
    assert {folder.name for folder in TESTS.iterdir() if any(folder.glob("**/test_*.py"))} == {
        "vqgan",
        "parti",
    } | others
    assert [file.name for file in TESTS.glob("test_*.py")] == [Path(__file__).name]
