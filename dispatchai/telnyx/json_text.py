"""JSON as carriers send it: text that the program does not need must not cost a call.

A caller's name, a header or a custom parameter may hold bytes that are not UTF-8, half of a surrogate pair, a control
character or a byte order mark. Such text is read with U+FFFD in place of what cannot be read; the raw body is kept as
it came. Only bodies that were signed come here, and messages of sockets with a token, so a second, slower reading is no
way to attack.
"""

from __future__ import annotations

import json
from typing import Any

import orjson

from dispatchai.telnyx.errors import TelnyxError


class NotJsonError(TelnyxError, ValueError):
    """The text is no JSON, whatever is replaced in it."""


def load(body: bytes) -> tuple[Any, bool]:
    """The value in `body`, and whether something in it was repaired. Raises NotJsonError."""
    try:
        return orjson.loads(body), False
    except orjson.JSONDecodeError:
        pass
    text = body.decode("utf-8-sig", errors="replace")  # without its byte order mark
    try:
        return _without_halves(json.loads(text, strict=False, parse_constant=_refuse)), True
    except (ValueError, RecursionError):
        raise NotJsonError("the body is not JSON") from None


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def _without_halves(value: Any) -> Any:
    """`value` with halves of surrogate pairs replaced, which no text may hold."""
    match value:
        case str():
            return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        case list():
            return [_without_halves(item) for item in value]
        case dict():
            return {_without_halves(name): _without_halves(item) for name, item in value.items()}
        case _:
            return value
