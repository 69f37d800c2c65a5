"""The base class of this package's exceptions. `error_responses` has what a request is answered."""

from __future__ import annotations


class GatewayError(Exception):
    """The gateway cannot do what it was asked to do."""
