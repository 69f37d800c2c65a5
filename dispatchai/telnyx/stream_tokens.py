"""Tokens that admit one call's media stream: short-lived, bound to a leg and its call, verifiable without a store.

The worker issues a token with each streaming command (`stream_auth_token`), the carrier presents it in the handshake of
the media socket, and the gateway verifies it. Decides the form of a token and the secret it is made with. The media
socket checks that the `start` message names the same leg. The token also names the call, because nothing else on the
socket is signed: whoever held the token of one leg could otherwise name another call in `start`. A token may be used
again until it expires or its call is over: a carrier that lost its connection reconnects with the token it has.

Form: ``base64url(call_control_id) . base64url(call_id) . expiry . base64url(HMAC-SHA256 of all before)``; the expiry is
in unix seconds.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from dispatchai.telnyx.fields import MAX_ID_CHARS, identifier

HEADER: Final = "x-telnyx-streaming-auth-token"
"""Header of the handshake with the token. Source: Telnyx media streaming, `stream_auth_token`."""

VALID_S: Final = 900
"""How long a token is valid. The carrier connects within seconds of the command, and each command has a new token; the
rest allows for clocks that differ. A carrier that comes back later with the old token is refused, reports that the
stream failed, and gets a command with a new one."""

MIN_SECRET_BYTES: Final = 16
"""Shorter secrets can be guessed: HMAC-SHA256 tokens should have at least 128 bits."""

MAX_TOKEN_CHARS: Final = 768
"""Longest token that is accepted: 4/3 of the two longest identifiers, the expiry, 43 characters of MAC. The carrier
allows 4000."""

_MAX_EXPIRY_DIGITS: Final = 12
_CONTEXT: Final = b"dispatchai stream token v2"


@dataclass(frozen=True, slots=True)
class Subject:
    """The leg a token was issued for, and the key of its call in every topic."""

    call_control_id: str
    call_id: str


def stream_secret(stream_token_secret: str, telnyx_api_key: str) -> bytes | None:
    """The secret that worker and gateway share: the one that is set, else one derived (HKDF-SHA256) from the API key.

    None when both are empty: then no token can be issued. Raises ValueError if `stream_token_secret` is set but
    shorter than MIN_SECRET_BYTES.
    """
    if stream_token_secret:
        secret = stream_token_secret.encode()
        if len(secret) < MIN_SECRET_BYTES:
            raise ValueError(f"STREAM_TOKEN_SECRET is too short: give at least {MIN_SECRET_BYTES} characters")
        return secret
    if telnyx_api_key:
        return HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=_CONTEXT).derive(telnyx_api_key.encode())
    return None


def issue(secret: bytes, subject: Subject, expires_at_s: int) -> str:
    """A token for a stream of `subject`, valid until `expires_at_s` (unix seconds, not included).

    URL-safe text of at most MAX_TOKEN_CHARS. Raises ValueError for a short secret, an invalid identifier, or an expiry
    out of range.
    """
    if len(secret) < MIN_SECRET_BYTES:
        raise ValueError(f"the secret is too short: at least {MIN_SECRET_BYTES} bytes")
    if identifier(subject.call_control_id) is None or identifier(subject.call_id) is None:
        raise ValueError(f"not a call control id or call id: at most {MAX_ID_CHARS} characters without blanks")
    if expires_at_s < 0 or len(str(expires_at_s)) > _MAX_EXPIRY_DIGITS:
        raise ValueError("the expiry is not a unix time in seconds")
    ids = f"{_text(subject.call_control_id.encode())}.{_text(subject.call_id.encode())}"
    claims = f"{ids}.{expires_at_s}"
    return f"{claims}.{_text(_mac(secret, claims))}"


def verify(secret: bytes, token: str, now_s: float) -> Subject | None:
    """The subject of `token`, or None if it was not issued with `secret` or has expired.

    The MAC over the whole token is compared in constant time before anything of it is read, so the time of a refusal
    does not reveal how close a guess came.
    """
    if len(token) > MAX_TOKEN_CHARS or not token.isascii():
        return None
    claims, _, mac = token.rpartition(".")
    # The text is compared, not the decoded bytes: base64 has several spellings of the same bytes.
    if not hmac.compare_digest(_text(_mac(secret, claims)), mac):
        return None
    match claims.split("."):
        case [leg, call, expiry] if expiry.isdigit() and now_s < int(expiry):
            return Subject(_identifier(leg), _identifier(call))
        case _:
            return None


def _identifier(text: str) -> str:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode("ascii")


def _mac(secret: bytes, claims: str) -> bytes:
    return hmac.digest(secret, _CONTEXT + b"\n" + claims.encode("ascii"), hashlib.sha256)


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")
