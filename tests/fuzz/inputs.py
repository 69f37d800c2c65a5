"""Broken input for the gateway: webhooks, signatures, media messages, tokens, and bytes that are no HTTP."""

from __future__ import annotations

import base64
import copy
import hashlib
import hmac
import json
from collections.abc import Iterator
from random import Random
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import strategies as st

from dispatchai.telnyx import signatures

CALL: Final = "fuzz-call"
LEG: Final = "v3:fuzz-leg"

WEBHOOK: Final[dict[str, Any]] = {
    "data": {
        "record_type": "event",
        "event_type": "call.initiated",
        "id": "9f9301c2-a9db-41bf-a670-013af4c67e3a",
        "occurred_at": "2026-05-19T23:30:15.038431Z",
        "payload": {
            "call_control_id": LEG,
            "call_leg_id": "b0457f28",
            "call_session_id": CALL,
            "client_state": None,
            "direction": "incoming",
            "from": "+15550100",
            "to": "sip:desk@example.org",
        },
    },
    "meta": {"attempt": 1, "delivered_to": "https://example.com/webhooks"},
}

START: Final[dict[str, Any]] = {
    "event": "start",
    "sequence_number": "1",
    "stream_id": "32DE0DEA",
    "start": {
        "call_control_id": LEG,
        "call_session_id": CALL,
        "custom_parameters": {},
        "media_format": {"encoding": "PCMU", "sample_rate": 8000, "channels": 1},
    },
}
MEDIA: Final[dict[str, Any]] = {
    "event": "media",
    "sequence_number": "4",
    "stream_id": "32DE0DEA",
    "media": {"track": "inbound", "chunk": "1", "timestamp": "5", "payload": base64.b64encode(bytes(160)).decode()},
}
OTHERS: Final[tuple[dict[str, Any], ...]] = (
    {"event": "connected", "version": "1.0.0"},
    {"event": "dtmf", "dtmf": {"digit": "1"}},
    {"event": "mark", "mark": {"name": "m"}},
    {"event": "error", "payload": {"code": 100003, "title": "malformed_frame"}},
    {"event": "stop", "stop": {"call_control_id": LEG}},
)

_DEEP: Final = 2000
_PECULIAR: Final[st.SearchStrategy[Any]] = st.sampled_from(
    [
        *("", " ", "\x00", "\ud800", "²", "١", "é" * 300, "x" * 257, "9" * 18, "9" * 30, "-1", "0", "1e5", "None"),
        *(0, -1, 2**31, 2**53 + 1, 2**63, 2**64 - 1, 2**70, 1e308, -0.0, float("nan"), float("inf"), True, None),
        *("9999-12-31T23:59:59.999999-23:59", "0001-01-01T00:00:00+23:59", "2026-02-30T00:00:00Z", "20260519T233015Z"),
        *("PCMA", "L16", "G722", "pcmu", "OPUS", "inbound_track", "outbound", "sideways", 16_000, 44_100),
        *("A", "AA==", "AAA=", "====", "YQ==\n", "YQ=", "*", [], {}, [[]], {"": {}}),
    ]
)
_VALUES: Final = st.recursive(
    _PECULIAR | st.text(max_size=20) | st.integers() | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def _changed(draw: st.DrawFn, template: dict[str, Any]) -> Any:
    """`template` with up to three of its values replaced, removed or moved."""
    root = {"": copy.deepcopy(template)}
    for _ in range(draw(st.integers(0, 3))):
        parent: dict[str, Any] = root
        name = ""
        while isinstance(parent[name], dict) and parent[name] and draw(st.integers(0, 4)):
            parent = parent[name]
            name = draw(st.sampled_from(sorted(parent)))
        match draw(st.integers(0, 5)):
            case 0 if parent is not root:
                del parent[name]
            case 1:
                parent[draw(st.text(max_size=5)) or "x"] = parent[name]
            case _:
                parent[name] = copy.deepcopy(draw(_VALUES))  # a later change may alter it
    return root[""]


@st.composite
def _edited(draw: st.DrawFn, raw: bytes) -> bytes:
    """`raw` with some bytes changed, removed, doubled or cut off; mostly unchanged."""
    for _ in range(draw(st.sampled_from([0, 0, 0, 0, 1, 1, 2, 5]))):
        at = draw(st.integers(0, len(raw)))
        until = min(len(raw), at + draw(st.integers(0, 8)))
        match draw(st.integers(0, 4)):
            case 0:
                raw = raw[:at]
            case 1:
                raw = raw[:at] + raw[until:]
            case 2:
                raw = raw[:until] + raw[at:]
            case 3:
                raw = raw[:at] + draw(st.binary(min_size=1, max_size=4)) + raw[until:]
            case _:
                depth = draw(st.integers(1, _DEEP))
                raw = raw[:at] + draw(st.sampled_from([b"[", b'{"a":', b'"', b"-", b"9"])) * depth + raw[at:]
    return raw


@st.composite
def _message(draw: st.DrawFn, template: dict[str, Any]) -> bytes:
    value = draw(_changed(template))
    text = json.dumps(value, ensure_ascii=draw(st.booleans()))
    return draw(_edited(text.encode("utf-8", "surrogatepass")))


WEBHOOKS: Final[st.SearchStrategy[bytes]] = _message(WEBHOOK) | st.binary(max_size=100)

MEDIA_MESSAGES: Final[st.SearchStrategy[bytes]] = st.one_of(
    _message(MEDIA),
    _message(MEDIA),
    _message(START),
    st.sampled_from(OTHERS).flatmap(_message),
    st.binary(max_size=60),
    st.integers(0, 30).map(
        lambda chunk: json.dumps(MEDIA | {"media": MEDIA["media"] | {"chunk": str(chunk)}}).encode()
    ),
)

CONVERSATIONS: Final[st.SearchStrategy[list[bytes]]] = st.tuples(
    st.sampled_from([[], [json.dumps(START).encode()], [json.dumps(START).encode()]]),
    st.lists(MEDIA_MESSAGES, max_size=40),
).map(lambda parts: [*parts[0], *parts[1]])

_HEADER_TEXT: Final = st.text(
    st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=90
)


@st.composite
def signature_headers(
    draw: st.DrawFn, key: Ed25519PrivateKey, secret: bytes, body: bytes, now_s: int
) -> dict[str, str]:
    """Headers that sign `body`, some of them broken."""
    at = now_s + draw(st.sampled_from([0, 0, 0, 0, 0, -200, 200, -400, 400, -(10**9), 10**9]))
    headers = signatures.sign(key, body + b" " if draw(st.integers(0, 9)) == 9 else body, at)
    if draw(st.integers(0, 3)) == 3:
        headers[signatures.HMAC_HEADER] = hmac.new(secret, body, hashlib.sha256).hexdigest()
    for name in sorted(headers):
        match draw(st.integers(0, 12)):
            case 10:
                del headers[name]
            case 11:
                headers[name] = draw(_HEADER_TEXT)
            case 12:
                text = draw(_edited(headers[name].encode()))
                headers[name] = "".join(chr(byte) for byte in text if 32 <= byte < 127)[:4000]
            case _:
                pass
    return headers


_SPLICES: Final = (
    b'"',
    b"\\",
    b"\\u0000",
    b"\\ud800",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"null",
    b"1e999",
    b"\xff",
    b"",
)


def variations(raw: bytes, seed: int, count: int) -> Iterator[bytes]:
    """`raw` with one place changed, in `count` ways. A parser needs microseconds, far less than Hypothesis to draw."""
    random = Random(seed)
    for _ in range(count):
        at = random.randrange(len(raw) + 1)
        until = min(len(raw), at + random.choice((0, 0, 1, 1, 2, 8, 64)))
        put = random.choice(_SPLICES) if random.random() < 0.5 else random.randbytes(random.randrange(1, 4))
        yield raw[:at] + put + raw[until:]


_HTTP: Final = (
    b"POST /api/v1/call/incoming HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n{}",
    b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\r\n",
    b"POST /api/v1/call/incoming HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
)
GARBAGE: Final[st.SearchStrategy[bytes]] = st.sampled_from(_HTTP).flatmap(_edited) | st.binary(max_size=200)
INVENTED_TOKENS: Final[st.SearchStrategy[str]] = _HEADER_TEXT.map(str.strip)
