"""A webhook is accepted if the carrier's key or the proxy's secret has recently signed exactly these bytes."""

from __future__ import annotations

import base64
import hashlib
import hmac
import itertools
from hmac import compare_digest

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from multidict import CIMultiDict

from dispatchai.settings import HMAC_REMEMBERED_S
from dispatchai.telnyx.signatures import REDELIVERY_S, Refusal, SignatureError, WebhookVerifier, public_key, sign

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
NEXT = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(range(2, 34)))
SECRET = b"secret"
BODY = '{"data": {"event_type": "call.initiated", "note": "µ"}}'.encode()
NOW = 1_764_000_000
BOTH = WebhookVerifier((KEY.public_key(), NEXT.public_key()), SECRET, 300)
ED25519_ONLY = WebhookVerifier((KEY.public_key(),), b"", 300)


def hmac_headers(body: bytes = BODY, secret: bytes = SECRET) -> dict[str, str]:
    return {"telnyx-signature-sha256": hmac.new(secret, body, hashlib.sha256).hexdigest()}


def refusal(verifier: WebhookVerifier, headers: dict[str, str], body: bytes = BODY, now: float = NOW) -> Refusal:
    with pytest.raises(SignatureError) as raised:
        verifier.verify(CIMultiDict(headers), body, now)
    return raised.value.refusal


@pytest.mark.parametrize("key", [KEY, NEXT], ids=["current", "next"])
def test_both_the_current_and_the_next_key_are_accepted(key: Ed25519PrivateKey) -> None:
    BOTH.verify(CIMultiDict(sign(key, BODY, NOW)), BODY, NOW)


def test_the_signed_bytes_are_timestamp_bar_body() -> None:
    signature = base64.b64encode(KEY.sign(str(NOW).encode() + b"|" + BODY)).decode()
    headers = {"Telnyx-Signature-Ed25519": signature, "Telnyx-Timestamp": str(NOW)}
    ED25519_ONLY.verify(CIMultiDict(headers), BODY, NOW)


def test_the_guides_hmac_header_is_accepted_in_either_case() -> None:
    headers = hmac_headers()
    BOTH.verify(CIMultiDict(headers), BODY, NOW)
    BOTH.verify(CIMultiDict({name: value.upper() for name, value in headers.items()}), BODY, NOW)


def test_one_valid_signature_is_enough_where_both_schemes_are_sent() -> None:
    BOTH.verify(CIMultiDict(sign(OTHER, BODY, NOW) | hmac_headers()), BODY, NOW)
    BOTH.verify(CIMultiDict(sign(KEY, BODY, NOW) | hmac_headers(secret=b"x")), BODY, NOW)


@pytest.mark.parametrize("age", [-300, 300])
def test_a_timestamp_at_the_edge_of_the_tolerance_is_accepted(age: int) -> None:
    BOTH.verify(CIMultiDict(sign(KEY, BODY, NOW - age)), BODY, NOW)


@pytest.mark.parametrize("age", [-301, 301], ids=["future", "stale"])
def test_a_timestamp_beyond_the_tolerance_is_refused(age: int) -> None:
    assert refusal(BOTH, sign(KEY, BODY, NOW - age)) is Refusal.STALE
    assert refusal(BOTH, sign(OTHER, BODY, NOW - age)) is Refusal.WRONG, (
        "only a webhook that the carrier signed is refused as stale"
    )


def test_another_key_or_another_body_is_refused() -> None:
    assert refusal(BOTH, sign(OTHER, BODY, NOW)) is Refusal.WRONG
    assert refusal(BOTH, sign(KEY, BODY, NOW), BODY + b" ") is Refusal.WRONG
    assert refusal(BOTH, hmac_headers(secret=b"guess")) is Refusal.WRONG
    assert refusal(BOTH, hmac_headers(), BODY + b" ") is Refusal.WRONG


def test_a_signature_is_valid_only_with_its_timestamp() -> None:
    headers = sign(KEY, BODY, NOW) | {"telnyx-timestamp": str(NOW + 1)}
    assert refusal(BOTH, headers) is Refusal.WRONG


@pytest.mark.parametrize(
    "changes",
    [
        {"telnyx-signature-ed25519": ""},
        {"telnyx-signature-ed25519": "no base64!"},
        {"telnyx-signature-ed25519": base64.b64encode(bytes(63)).decode()},
        {"telnyx-signature-ed25519": "é"},
        {"telnyx-timestamp": ""},
        {"telnyx-timestamp": "soon"},
        {"telnyx-timestamp": "-1764000000"},
        {"telnyx-timestamp": "9" * 5000},
        {"telnyx-timestamp": "١٧٦٤٠٠٠٠٠٠"},
    ],
)
def test_malformed_headers_are_refused(changes: dict[str, str]) -> None:
    assert refusal(ED25519_ONLY, sign(KEY, BODY, NOW) | changes) is Refusal.MALFORMED


def test_a_truncated_signature_is_refused() -> None:
    headers = sign(KEY, BODY, NOW)
    headers["telnyx-signature-ed25519"] = headers["telnyx-signature-ed25519"][:40]
    assert refusal(BOTH, headers) is Refusal.MALFORMED
    assert refusal(BOTH, {"telnyx-signature-sha256": "abc"}) is Refusal.MALFORMED


def test_missing_headers_are_refused() -> None:
    assert refusal(BOTH, {}) is Refusal.MISSING
    signed = sign(KEY, BODY, NOW)
    assert refusal(BOTH, {"telnyx-signature-ed25519": signed["telnyx-signature-ed25519"]}) is Refusal.MISSING
    assert refusal(BOTH, {"telnyx-timestamp": signed["telnyx-timestamp"]}) is Refusal.MISSING


def test_a_header_that_comes_twice_is_refused() -> None:
    headers = CIMultiDict(sign(KEY, BODY, NOW))
    headers.add("telnyx-timestamp", str(NOW))
    with pytest.raises(SignatureError, match="malformed"):
        BOTH.verify(headers, BODY, NOW)


def test_a_scheme_that_is_not_configured_is_ignored() -> None:
    assert refusal(ED25519_ONLY, hmac_headers(secret=b"")) is Refusal.MISSING
    assert refusal(WebhookVerifier((), SECRET, 300), sign(KEY, BODY, NOW)) is Refusal.MISSING


def test_without_a_key_or_a_secret_nothing_is_accepted() -> None:
    nothing = WebhookVerifier.of(("", ""), "", 300)
    assert not nothing.configured
    assert refusal(nothing, sign(KEY, BODY, NOW) | hmac_headers(secret=b"")) is Refusal.NOT_CONFIGURED


@pytest.mark.parametrize("text", ["short", base64.b64encode(bytes(31)).decode(), "é"])
def test_an_invalid_public_key_is_an_error_at_startup(text: str) -> None:
    with pytest.raises(ValueError, match="public key"):
        public_key(text)


def test_the_secret_is_not_in_the_repr() -> None:
    assert "hidden" not in repr(WebhookVerifier((), b"hidden", 300))


class WatchedKey:
    """A public key that counts how often it was tried."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key.public_key()
        self.tried = 0

    def verify(self, signature: bytes, data: bytes) -> None:
        self.tried += 1
        self._key.verify(signature, data)


@pytest.mark.parametrize("signer", [KEY, NEXT, OTHER], ids=["first", "second", "neither"])
def test_every_key_is_tried_whichever_signed_the_body(signer: Ed25519PrivateKey) -> None:
    keys = (WatchedKey(KEY), WatchedKey(NEXT))
    verifier = WebhookVerifier(keys, b"", 300)  # type: ignore[arg-type]
    headers = sign(signer, BODY, NOW)
    if signer is OTHER:
        assert refusal(verifier, headers) is Refusal.WRONG
    else:
        verifier.verify(CIMultiDict(headers), BODY, NOW)
    assert [key.tried for key in keys] == [1, 1]


def test_digests_are_compared_whole_and_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def recording(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return compare_digest(one, other)

    monkeypatch.setattr(hmac, "compare_digest", recording)
    digest = hmac_headers()["telnyx-signature-sha256"]
    almost = [*(f"{digest[:n]}{'0' if digest[n] != '0' else '1'}{digest[n + 1 :]}" for n in (0, 31, 63)), "0" * 64]
    for guess in almost:
        assert refusal(BOTH, {"telnyx-signature-sha256": guess}) is Refusal.WRONG
    assert compared == [(digest.encode(), guess.encode()) for guess in almost]


def test_a_signature_with_any_part_missing_or_changed_is_refused() -> None:
    signed = sign(KEY, BODY, NOW)
    raw = base64.b64decode(signed["telnyx-signature-ed25519"])
    for length in range(64):
        cut = signed | {"telnyx-signature-ed25519": base64.b64encode(raw[:length]).decode()}
        assert refusal(BOTH, cut) is Refusal.MALFORMED
    for place, bit in itertools.product(range(0, 64, 7), range(8)):
        changed = bytearray(raw)
        changed[place] ^= 1 << bit
        forged = signed | {"telnyx-signature-ed25519": base64.b64encode(bytes(changed)).decode()}
        assert refusal(BOTH, forged) is Refusal.WRONG


def test_the_same_signed_bytes_are_accepted_again_only_within_the_tolerance() -> None:
    headers = CIMultiDict(sign(KEY, BODY, NOW))
    for later in (0, 2, 300):
        BOTH.verify(headers, BODY, NOW + later)
    with pytest.raises(SignatureError, match="stale"):
        BOTH.verify(headers, BODY, NOW + 301)


@pytest.mark.parametrize("age_s", [-300, 0, 299, 900])
def test_an_event_whose_signature_has_no_time_may_be_some_minutes_old(age_s: float) -> None:
    BOTH.check_time(NOW - age_s, NOW)


@pytest.mark.parametrize(
    ("age_s", "refused"), [(901, Refusal.STALE), (1e9, Refusal.STALE), (-301, Refusal.STALE), (None, Refusal.UNDATED)]
)
def test_an_old_event_whose_signature_has_no_time_is_refused(age_s: float | None, refused: Refusal) -> None:
    with pytest.raises(SignatureError) as error:
        BOTH.check_time(None if age_s is None else NOW - age_s, NOW)
    assert error.value.refusal is refused


def test_calls_are_remembered_for_longer_than_an_event_may_be_old() -> None:
    assert HMAC_REMEMBERED_S >= 2 * REDELIVERY_S
