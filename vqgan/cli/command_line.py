"""What every command does with its words: options, `--config`, `--print-config`, `--help`, one-line errors, exit code.

A command has a config, whose fields are its options; `vqgan.config.options` says how they are spelled.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqgan.cli.console import show_anything
from vqgan.cli.exit_codes import ExitCode
from vqgan.config.options import NO_SHORTCUTS, Option, Shortcuts, read_options, split_options
from vqgan.config.schema import Config, apply_options, dump_config, format_help
from vqgan.config.shipped_configs import find_config
from vqgan.data.source import printable
from vqgan.errors import ConfigError, UserError


@dataclass(frozen=True)
class Command:
    """What options are read for, and what is then done."""

    config_type: type[Config]
    run: Callable[[Any], int]
    """Does it; returns the exit code."""
    about: str | None
    """The head of the help."""
    load: Callable[[Path | None, list[Option]], Config] | None = None
    """From `--config` and the options to the config, where some of it depends on what is given."""
    shortcuts: Shortcuts = NO_SHORTCUTS
    has_file: bool = True
    """Whether `--config` names a file that the options override."""
    after_interrupt: str = "interrupted"
    """Said of Ctrl-C that `run` does not answer itself."""

    def read(self, path: Path | None, options: list[Option]) -> Config:
        """Raises ConfigError: one line."""
        if self.load is not None:
            return self.load(path, options)
        return apply_options(self.config_type, path, read_options(options, self.config_type, self.shortcuts))

    def help(self) -> str:
        """The whole text."""
        names = {field: name for name, field in self.shortcuts.names.items()}
        options = format_help(self.config_type, names)
        return f"{(self.about or '').strip()}\n\n{_FILE * self.has_file}{_COMMON}\n\n{options}"


Choose = Callable[[Path | None, list[Option]], Command]
"""Which command it is, where that depends on `--config` or the options, `--help` among them."""


def run_command(argv: Sequence[str], command: Command | Choose) -> int:
    """Reads the words and does what they say; returns the exit code (docs/commands.md)."""
    for stream in (sys.stdout, sys.stderr):
        show_anything(stream)
    after_interrupt = Command.after_interrupt
    try:
        options = list(split_options(argv))
        has_file = not isinstance(command, Command) or command.has_file
        path, rest = _config_file(options) if has_file else (None, options)
        if not isinstance(command, Command):
            command = command(path, rest)
        after_interrupt = command.after_interrupt
        wanted = {option.name for option in rest}
        rest = [option for option in rest if option.name not in ("help", "print_config")]
        if "help" in wanted:
            print_out(command.help())
            return ExitCode.DONE
        config = command.read(path, rest)
        if "print_config" in wanted:
            print_out(dump_config(config).rstrip())
            return ExitCode.DONE
        return command.run(config)
    except UserError as error:
        print_error(error)
        return ExitCode.USER_ERROR
    except KeyboardInterrupt:
        sys.stderr.write(f"{after_interrupt}\n")
        return ExitCode.INTERRUPTED_AT_ONCE


def training_command(config_type: type[Config], train: Callable[[Any], bool], about: str | None) -> Command:
    """The command of a run that answers Ctrl-C itself: `train` returns whether it is complete."""
    return Command(
        config_type,
        lambda config: ExitCode.DONE if train(config) else ExitCode.INTERRUPTED,
        about,
        after_interrupt="interrupted before the first step: the run is as it was; run the same command to go on",
    )


def run_training(
    argv: Sequence[str], config_type: type[Config], train: Callable[[Any], bool], about: str | None
) -> int:
    """Reads the words, trains, and returns the exit code."""
    return run_command(argv, training_command(config_type, train, about))


def print_out(text: str) -> None:
    """To standard output. Names and captions in it come from outside: none of them steers the terminal."""
    sys.stdout.write(printable(text, keep="\n\t") + "\n")


def print_error(error: Exception) -> None:
    """One line on standard error."""
    sys.stderr.write(f"error: {printable(str(error))}\n")


def _config_file(options: list[Option]) -> tuple[Path | None, list[Option]]:
    """What `--config` names, and the other options."""
    named = [option.word for option in options if option.name == "config"]
    rest = [option for option in options if option.name != "config"]
    if not named:
        return None, rest
    if not named[-1]:
        raise ConfigError("--config needs a file or the name of a shipped config: --config vqgan/shapes")
    return find_config(named[-1]), rest


_FILE = """\
  --config FILE    YAML file, or the name of a shipped config such as vqgan/shapes; the options below override it
"""
_COMMON = """\
  --print-config   print the resolved configuration and stop
  --help           this text"""
