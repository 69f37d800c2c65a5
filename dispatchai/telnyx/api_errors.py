"""The errors in Telnyx's replies to commands, as typed values.

Decides the names in an error body and which codes the program distinguishes. `client` decides what follows from one.
Source: Telnyx Voice API v2, error codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import orjson

CODE_ALREADY_ENDED: Final = "90018"

CODES_TOO_EARLY: Final = frozenset({"90034", "90020"})
"""The call is not answered yet; or, for a recording, has no audio yet, and Telnyx wants the command again after the
answer."""

CODE_ALREADY_STREAMING: Final = "90045"

CODES_CHANNEL_LIMIT: Final = frozenset({"90041", "90042", "90043"})
"""All of the account's channels are taken at the moment: worth another try, whatever the status."""

TITLE_MAX_CHARS: Final = 200


@dataclass(frozen=True, slots=True)
class ApiError:
    """The first error of a reply; both fields are empty where the body has none that is readable.

    The error's `detail` is left out: it may quote what was sent.
    """

    code: str = ""
    title: str = ""


def parse_error(body: bytes) -> ApiError:
    """The first error in the body of a reply. Nothing in `body` makes it raise."""
    try:
        reply: Any = orjson.loads(body)
    except orjson.JSONDecodeError:
        return ApiError()
    match reply:
        case {"errors": [{"code": str() | int() as code, **rest}, *_]}:
            title = rest.get("title")
            return ApiError(str(code), title[:TITLE_MAX_CHARS] if isinstance(title, str) else "")
        case _:
            return ApiError()
