"""The errors that are written for the person at the keyboard: one line each, shown without a traceback.

Below every other module: anything may raise one of these, or derive its own from `UserError`, and every command shows
it and ends with exit code 2 (docs/commands.md).
"""


class UserError(Exception):
    """What a person can mend: the message says in one line what was expected, what was received, and the remedy."""


class ConfigError(UserError, ValueError):
    """A configuration or an option that cannot be used."""
