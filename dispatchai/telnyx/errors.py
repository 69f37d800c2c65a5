"""The base class of this package's exceptions."""

from __future__ import annotations


class TelnyxError(Exception):
    """Something that came from Telnyx, or in its name, cannot be used."""
