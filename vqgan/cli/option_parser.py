"""Options of the tools that take no YAML: argparse whose errors are one line, its help from a config's fields."""

import argparse
from typing import Any, NoReturn

from vqgan.config.schema import Config, ConfigError


class OptionParser(argparse.ArgumentParser):
    """Errors are ConfigErrors: one line, exit code 2. Unless argparse's own is asked for, `--help` is a flag like any
    other (`add_help_flag`), for the tool to act on."""

    def __init__(self, name: str, description: str | None, add_help: bool = False) -> None:
        super().__init__(
            name,
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            add_help=add_help,
        )

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)

    def add_field(self, owner: type[Config], name: str, kind: type[Any], metavar: str, default: str = "") -> None:
        """An option for a field of `owner`, with its docstring; `default` says what its absence means, if not the
        field's own default."""
        field = owner.model_fields[name]
        shown = default or ("required" if field.is_required() else field.default)
        option = f"--{name.replace('_', '-')}"
        self.add_argument(option, type=kind, metavar=metavar, help=f"{field.description} [{shown}]")

    def add_help_flag(self) -> None:
        """`--help` and `-h`, which stand last."""
        self.add_argument("--help", "-h", action="store_true", help="This text")
