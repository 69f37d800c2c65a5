"""Whether a webhook comes from the carrier.

Two schemes sign the raw body: Telnyx API v2's Ed25519 (`telnyx-signature-ed25519` and `telnyx-timestamp`), with a
current and a next public key, and HMAC-SHA256 in hex (`telnyx-signature-sha256`), for a proxy that signs this way. The
module ignores the body's content and reads no clock: time is an argument.

A webhook that is sent again soon is accepted again. It is stored again and consumers deduplicate by event id, so it has
no effect. To refuse it would do more harm: the same signed bytes come again when the answer to the first was lost, and
only Kafka knows whether it was stored. A webhook that is sent again late is refused as stale, since the call that would
recognise it may be forgotten by then. Ed25519 signs the time of each delivery. HMAC signs none, so the time of the
event counts, which is in the signed body: `check_time`. It is the same in each delivery, so it may be older: carriers
try again for some minutes.

Timing: HMAC digests are compared by `hmac.compare_digest`, after the digest of the whole body was made. An Ed25519
check uses no secret of this side, so its time reveals nothing that helps to forge a signature. Every configured key is
tried all the same, so that the time does not reveal which key is in use. Malformed headers are refused before that: a
sender knows what it wrote in them. A webhook refused as stale was signed by the carrier: it is old, or one of the two
clocks is wrong.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from multidict import CIMultiDict, CIMultiDictProxy

from dispatchai.telnyx.errors import TelnyxError

Headers = CIMultiDict[str] | CIMultiDictProxy[str]

ED25519_HEADER: Final = "telnyx-signature-ed25519"
TIMESTAMP_HEADER: Final = "telnyx-timestamp"
HMAC_HEADER: Final = "telnyx-signature-sha256"

_SIGNATURE_BYTES: Final = 64
REDELIVERY_S: Final = 900.0
"""How old an event may be whose signature has no time of its own. Telnyx's own policies of redelivery last a minute."""

_MAX_TIMESTAMP_DIGITS: Final = 12
"""Unix seconds up to the year 33658; a longer text is no timestamp."""


class Refusal(StrEnum):
    """Why a webhook is not accepted."""

    NOT_CONFIGURED = "not_configured"
    """Neither a key nor a secret is set: nothing can be verified."""
    MISSING = "missing"
    """It has no signature in a configured scheme."""
    MALFORMED = "malformed"
    """A header is not as its scheme prescribes."""
    STALE = "stale"
    """Its timestamp is too far from now, in the past or in the future."""
    WRONG = "wrong"
    """The signature is not of this body."""
    UNDATED = "undated"
    """Neither the signature nor the event has a time."""


class Scheme(StrEnum):
    """How a webhook is signed."""

    ED25519 = "ed25519"
    HMAC = "hmac"


class SignatureError(TelnyxError):
    """The webhook is not accepted."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.value)
        self.refusal = refusal


@dataclass(frozen=True, slots=True)
class WebhookVerifier:
    """The keys and the secret that may sign. `tolerance_s` is how far a timestamp may be off, in both directions."""

    public_keys: tuple[Ed25519PublicKey, ...]
    secret: bytes = field(repr=False)
    tolerance_s: int

    @classmethod
    def of(cls, public_keys: Iterable[str], secret: str, tolerance_s: int) -> Self:
        """From the text of the settings; empty keys are left out. Raises ValueError for an invalid key."""
        return cls(tuple(public_key(text) for text in public_keys if text), secret.encode(), tolerance_s)

    @property
    def configured(self) -> bool:
        """Whether any webhook can be verified."""
        return bool(self.public_keys or self.secret)

    def verify(self, headers: Headers, body: bytes, now_s: float) -> Scheme:
        """The scheme in which `body` was signed, one of the configured ones. Raises SignatureError if there is none.

        A header of a scheme that is not configured is ignored. If both schemes are configured and sent, one valid
        signature is enough. After HMAC, `check_time` must hold too.
        """
        if not self.configured:
            raise SignatureError(Refusal.NOT_CONFIGURED)
        refusal = Refusal.MISSING
        if self.public_keys and ED25519_HEADER in headers:
            try:
                self._verify_ed25519(headers, body, now_s)
                return Scheme.ED25519
            except SignatureError as error:
                refusal = error.refusal
        if self.secret and HMAC_HEADER in headers:
            self._verify_hmac(headers, body)
            return Scheme.HMAC
        raise SignatureError(refusal)

    def check_time(self, occurred_at_s: float | None, now_s: float) -> None:
        """Raise SignatureError unless an event whose signature has no time happened lately, by its own time."""
        if occurred_at_s is None:
            raise SignatureError(Refusal.UNDATED)
        if not -self.tolerance_s <= now_s - occurred_at_s <= max(REDELIVERY_S, self.tolerance_s):
            raise SignatureError(Refusal.STALE)

    def _verify_ed25519(self, headers: Headers, body: bytes, now_s: float) -> None:
        signature_text = _only(headers, ED25519_HEADER)
        timestamp = _only(headers, TIMESTAMP_HEADER)
        try:
            signature = base64.b64decode(signature_text, validate=True)
        except (binascii.Error, ValueError):
            raise SignatureError(Refusal.MALFORMED) from None
        if len(signature) != _SIGNATURE_BYTES or not timestamp.isdigit() or len(timestamp) > _MAX_TIMESTAMP_DIGITS:
            raise SignatureError(Refusal.MALFORMED)
        signed = timestamp + b"|" + body
        # Every key is tried, whatever the others' result, so that the time does not reveal which key is in use.
        verdicts = [_signed_by(key, signature, signed) for key in self.public_keys]
        if not any(verdicts):
            raise SignatureError(Refusal.WRONG)
        if abs(now_s - int(timestamp)) > self.tolerance_s:
            raise SignatureError(Refusal.STALE)

    def _verify_hmac(self, headers: Headers, body: bytes) -> None:
        given = _only(headers, HMAC_HEADER)
        expected = hmac.digest(self.secret, body, hashlib.sha256).hex().encode("ascii")
        if len(given) != len(expected):
            raise SignatureError(Refusal.MALFORMED)
        if not hmac.compare_digest(expected, given.lower()):
            raise SignatureError(Refusal.WRONG)


def public_key(text: str) -> Ed25519PublicKey:
    """The key from its base64, as the carrier's portal shows it. Raises ValueError."""
    try:
        return Ed25519PublicKey.from_public_bytes(base64.b64decode(text.strip(), validate=True))
    except ValueError:
        raise ValueError("not a public key: give the base64 of an Ed25519 key's 32 bytes") from None


def sign(key: Ed25519PrivateKey, body: bytes, timestamp_s: int) -> dict[str, str]:
    """The two headers by which the carrier signs `body` at `timestamp_s` (unix seconds)."""
    timestamp = str(timestamp_s)
    signature = key.sign(timestamp.encode("ascii") + b"|" + body)
    return {ED25519_HEADER: base64.b64encode(signature).decode("ascii"), TIMESTAMP_HEADER: timestamp}


def _only(headers: Headers, name: str) -> bytes:
    """The value of a header that must occur exactly once."""
    values = headers.getall(name, [])
    if len(values) != 1:
        raise SignatureError(Refusal.MALFORMED if values else Refusal.MISSING)
    return values[0].encode("utf-8", "surrogateescape")


def _signed_by(key: Ed25519PublicKey, signature: bytes, signed: bytes) -> bool:
    try:
        key.verify(signature, signed)
    except InvalidSignature:
        return False
    return True
