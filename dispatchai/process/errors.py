"""The base class of this package's errors."""

from __future__ import annotations


class ProcessError(Exception):
    """A process could not be started or found. The message says why and, where somebody can act, what to do."""
