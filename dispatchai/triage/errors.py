"""Errors of triage."""

from __future__ import annotations


class TriageError(ValueError):
    """Base class of triage's errors."""


class RulesError(TriageError):
    """The rules file cannot be used. The message has a line for each fault: file, line, entry, and what to write."""


class PatternError(TriageError):
    """The text of a pattern is wrong. The message says how."""
