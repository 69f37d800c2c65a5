"""Errors of the records and their codec."""

from __future__ import annotations


class RecordError(ValueError):
    """Base class of the records' errors."""


class DecodeError(RecordError):
    """The bytes are no record that this version can read. The message says why, without any of the content."""


class SchemaError(RecordError):
    """Two schemas do not fit each other. The message names both."""
