"""The base class of this package's exceptions."""

from __future__ import annotations


class SimulatorError(Exception):
    """The simulated carrier cannot do what it was asked to do."""
