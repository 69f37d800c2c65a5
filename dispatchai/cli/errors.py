"""The errors of the commands. `main` turns each into one message on standard error and an exit code."""

from __future__ import annotations

from typing import ClassVar


class CliError(Exception):
    """A command failed. The message says what is wrong and what to do."""

    exit_code: ClassVar[int] = 1


class UnusableError(CliError):
    """A command cannot begin: a setting, an argument or something it needs is wrong or missing."""

    exit_code: ClassVar[int] = 2
