"""Which errors are told in one line: those that derive from `UserError`, whatever module raises them."""

import importlib
import pkgutil

import pytest

import parti
import vqgan
from vqgan.cli.command_line import run_training
from vqgan.config.schema import Config
from vqgan.errors import UserError

INTERNAL = {
    "NotYAMLError", "WeightsHeaderError", "TooLargeError", "NotOnHubError", "RefusedImageError", "RemoteError",
    "BrokenTarError", "HostileTarError", "BehindTheEndError", "PickleRefusedError", "_DamagedError", "RefusedFileError",
    "UnsafeFolderError", "RecursionError", "UnusableSample",
}  # fmt: skip
"""Caught inside, where the file's or the item's name is known, and told as one of the others."""


def own_errors() -> list[type[BaseException]]:
    found: set[type[BaseException]] = set()
    for package in (vqgan, parti):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            values = vars(importlib.import_module(module.name)).values()
            found |= {value for value in values if isinstance(value, type) and issubclass(value, BaseException)}
    return sorted((error for error in found if error.__module__.startswith(("vqgan", "parti"))), key=str)


def test_every_error_of_ours_is_for_the_user_or_known_to_be_caught_inside() -> None:
    errors = own_errors()
    assert len(errors) > 15
    for error in errors:
        assert issubclass(error, UserError) != (error.__name__ in INTERNAL), error


@pytest.mark.parametrize("error", [error for error in own_errors() if issubclass(error, UserError)])
def test_a_command_tells_it_in_one_line_and_ends_with_2(
    error: type[UserError], capsys: pytest.CaptureFixture[str]
) -> None:
    class Nothing(Config):
        pass

    def fail(_: Nothing) -> bool:
        raise error("what it is; what to do")

    assert run_training([], Nothing, fail, None) == 2
    assert capsys.readouterr().err == "error: what it is; what to do\n"
