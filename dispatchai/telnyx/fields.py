"""Single fields of Telnyx's JSON. A field of a wrong type counts as absent.

Decides what an identifier is and which key a call has in every topic (`call_id_of`). Pure.
"""

from __future__ import annotations

import re
from typing import Any, Final

MAX_ID_CHARS: Final = 256
"""Longest identifier that is accepted. Telnyx's longest, the call control id, has about 100 characters."""

MAX_DIGITS: Final = 18
"""Longest number that is read: any number of 18 digits fits in 64 bits."""

_ID: Final = re.compile(r"[A-Za-z0-9._:~+/=@-]+", re.ASCII)


def identifier(value: object) -> str | None:
    """`value` if it is an identifier: 1 to MAX_ID_CHARS letters, digits and ``._:~+/=@-``. None otherwise."""
    if isinstance(value, str) and len(value) <= MAX_ID_CHARS and _ID.fullmatch(value):
        return value
    return None


def call_id_of(call_session_id: object, call_control_id: object) -> str | None:
    """The key of a call in every topic: its session id, which its legs share, else its control id, else None.

    Webhooks and media sockets both use it, so a call's events and its audio have the same key.
    """
    return identifier(call_session_id) or identifier(call_control_id)


def as_object(value: object) -> dict[str, Any]:
    """`value` if it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def as_text(value: object) -> str | None:
    """`value` if it is a string with something in it."""
    return value if isinstance(value, str) and value else None


def as_number(value: object) -> int | None:
    """A whole number from 0, which Telnyx may write as text. None if it is negative or has more than MAX_DIGITS."""
    if type(value) is str:
        return int(value) if len(value) <= MAX_DIGITS and value.isascii() and value.isdigit() else None
    return value if type(value) is int and 0 <= value < 10**MAX_DIGITS else None
