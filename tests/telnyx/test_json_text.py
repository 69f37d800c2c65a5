"""Text that the program does not need never costs a call."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatchai.telnyx.json_text import NotJsonError, load
from dispatchai.telnyx.media_messages import BadMessage, Start, parse_media_message
from dispatchai.telnyx.webhooks import EnvelopeError, parse_payload, parse_webhook


def initiated(name: bytes) -> bytes:
    """A `call.initiated` whose caller_id_name is `name`, as the raw bytes of a JSON text."""
    return (
        b'{"data":{"event_type":"call.initiated","id":"e-1","occurred_at":"2026-05-19T23:30:15.038431Z","payload":'
        b'{"call_control_id":"v3:abc","call_session_id":"s-1","direction":"incoming","from":"+15550100","caller_id_name":"'
        + name
        + b'"}},"meta":{"attempt":1}}'
    )


BROKEN = {
    "Latin-1": b"Jos\xe9",
    "half of a surrogate pair": rb"Ana \ud83d",
    "cut in the middle of a character": "Zo\u00eb".encode()[:-1],
    "a raw tab": b"Ana\tB",
    "a raw NUL": b"Ana\0",
    "an overlong encoding": b"\xc0\xaf",
}


@pytest.mark.parametrize("name", BROKEN.values(), ids=BROKEN)
def test_a_broken_name_does_not_cost_the_call(name: bytes) -> None:
    body = initiated(name)
    webhook = parse_webhook(body)
    assert (webhook.call_id, webhook.type, webhook.from_number, webhook.repaired) == (
        *("s-1", "call.initiated", "+15550100", True),
    )
    assert parse_payload("call.initiated", body) == parse_payload("call.initiated", initiated(b"Ana"))


def test_a_byte_order_mark_does_not_cost_the_call() -> None:
    assert parse_webhook(b"\xef\xbb\xbf" + initiated(b"Ana")).call_id == "s-1"


def test_a_whole_body_is_not_repaired() -> None:
    assert not parse_webhook(initiated("Zoë".encode())).repaired


def test_a_start_with_broken_parameters_begins_the_stream() -> None:
    text = (
        b'{"event":"start","stream_id":"st-1","start":{"call_control_id":"v3:abc","custom_parameters":{"name":"Jos\xe9"},'
        b'"media_format":{"encoding":"PCMU","sample_rate":8000,"channels":1}}}'
    )
    assert isinstance(parse_media_message(text), Start)
    with pytest.raises(BadMessage):
        parse_media_message(b'{"event":"media","x":"\xe9"}')


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff", b'{"a":NaN}', b"[" * 100_000, b'{"a":' * 5_000, b"9" * 5_000 + b"\xff"]
)
def test_what_is_no_json_stays_none(body: bytes) -> None:
    with pytest.raises(NotJsonError):
        load(body)
    with pytest.raises(EnvelopeError):
        parse_webhook(body)


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(values)
def test_valid_json_is_read_as_it_is(value: Any) -> None:
    assert load(json.dumps(value).encode()) == (value, False)


@given(values, st.binary(min_size=1, max_size=3), st.integers(0))
def test_whatever_is_repaired_can_be_written_again(value: Any, noise: bytes, at: int) -> None:
    text = json.dumps({"name": "a name", "value": value}, ensure_ascii=False).encode()
    at %= len(text)
    try:
        found, _ = load(text[:at] + noise + text[at:])
    except NotJsonError:
        return
    json.dumps(found, ensure_ascii=False).encode()
