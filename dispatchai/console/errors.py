"""The base class of this package's errors."""

from __future__ import annotations


class ConsoleError(Exception):
    """The console cannot show or store something now. The message says why."""
