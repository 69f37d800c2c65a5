"""DispatchAI: triage of emergency calls while they are still in progress."""

__version__ = "0.2.0"
