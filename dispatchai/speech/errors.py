"""Errors of speech."""

from __future__ import annotations


class SpeechError(Exception):
    """Base class of the errors of speech."""


class RecognizerError(SpeechError):
    """The recogniser cannot run at all: its model or its program is missing or broken."""


class UnsupportedFormatError(SpeechError, ValueError):
    """The recogniser cannot hear audio of this format. The message names it."""

    def __init__(self, encoding: str, sample_rate: int) -> None:
        super().__init__(f"cannot hear {encoding} at {sample_rate} Hz")
