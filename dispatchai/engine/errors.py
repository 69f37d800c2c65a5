"""Errors of the engine."""

from __future__ import annotations

from aiokafka.errors import KafkaError


class EngineError(Exception):
    """Base class of the engine's errors."""


class AssignmentOverError(KafkaError, EngineError):
    """A record was not written: the assignment that it belongs to is over, or the application has failed.

    A KafkaError that is not retriable, because aiokafka hands it to whoever waits for a batch that was dropped.
    """

    retriable = False


class StalledError(EngineError):
    """A partition is stalled. The message names it and says how far behind it is."""


class UnsupportedVersionError(EngineError):
    """A library differs from the versions that the engine works with. The message names both."""
