"""Errors of audio."""

from __future__ import annotations


class AudioError(ValueError):
    """Base class of the errors of audio."""


class CodecError(AudioError):
    """The payload cannot be decoded. The message says why."""
