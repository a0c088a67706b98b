"""The command line of the training tools: `--help`, `--print-config`, `--config FILE`, dotted overrides, one-line
errors."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from vqgan.cli.exit_codes import ExitCode
from vqgan.config.schema import Config, ConfigError, dump_config, format_help, load_config
from vqgan.data.source import printable
from vqgan.errors import UserError

ConfigT = TypeVar("ConfigT", bound=Config)


def run_training(
    argv: list[str], config_type: type[ConfigT], train: Callable[[ConfigT], bool], description: str | None
) -> int:
    """Parse, train, and return the exit code."""
    if "--help" in argv or "-h" in argv:
        print_out(f"{(description or '').strip()}\n\n{_COMMON}\n\n{format_help(config_type)}")
        return 0
    try:
        path, overrides, print_config = split_arguments(argv)
        config = load_config(config_type, path, overrides)
        if print_config:
            print_out(dump_config(config).rstrip())
            return 0
        return ExitCode.DONE if train(config) else ExitCode.INTERRUPTED
    except UserError as error:
        print_error(error)
        return ExitCode.USER_ERROR
    except KeyboardInterrupt:
        sys.stderr.write("interrupted before the first step: the run is as it was; run the same command to go on\n")
        return ExitCode.INTERRUPTED_AT_ONCE


def split_arguments(argv: list[str]) -> tuple[Path | None, list[str], bool]:
    """Returns the config file, the dotted overrides, and whether `--print-config` was among the words."""
    path, overrides, print_config = None, [], False
    words = iter(argv)
    for word in words:
        if word in ("--print-config", "--print_config"):
            print_config = True
        elif word == "--config" or word.startswith("--config="):
            value = word.partition("=")[2] or next(words, None)
            if value is None:
                raise ConfigError("--config needs a file: --config configs/vqgan/shapes.yaml")
            path = Path(value)
        else:
            overrides.append(word)
    return path, overrides, print_config


def print_out(text: str) -> None:
    """To standard output. Names and captions in it come from outside: none of them steers the terminal."""
    sys.stdout.write(printable(text, keep="\n\t") + "\n")


def print_error(error: Exception) -> None:
    """One line on standard error."""
    sys.stderr.write(f"error: {printable(str(error))}\n")


_COMMON = """\
  --config FILE    YAML file; the options below override it
  --print-config   print the resolved configuration and stop
  --help           this text"""
