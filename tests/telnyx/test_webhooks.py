"""Webhooks become typed values; what is missing, extra or of a wrong type harms nothing."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatchai.telnyx.commands import TRANSFER_LEG_STATE
from dispatchai.telnyx.fields import call_id_of
from dispatchai.telnyx.webhooks import (
    CallAnswered,
    CallHangup,
    CallInitiated,
    EnvelopeError,
    StreamingFailed,
    StreamingStarted,
    StreamingStopped,
    WebhookPayload,
    WebhookType,
    parse_payload,
    parse_time,
    parse_webhook,
)
from tests.support.gateway import event
from tests.telnyx.strategies import JSON


def parse(message: Any) -> Any:
    return parse_webhook(orjson.dumps(message))


def test_a_webhook_of_the_carrier_is_read() -> None:
    message = event("session-1", id="evt-1")
    message["meta"]["attempt"] = 3
    webhook = parse(message)
    assert webhook.event_id == "evt-1"
    assert webhook.type == "call.initiated"
    assert webhook.occurred_at == 1_779_233_415_038_431
    assert webhook.call_id == "session-1"
    assert webhook.call_control_id == "v3:session-1"
    assert (webhook.from_number, webhook.to_number) == ("+15551234567", "+15559876543")
    assert webhook.attempt == 3


def test_the_curl_example_of_the_guide_is_read() -> None:
    webhook = parse(
        {
            "data": {
                "event_type": "call.initiated",
                "payload": {
                    "call_control_id": "test_ccid",
                    "call_session_id": "test_call_id",
                    "from": "+15551234567",
                    "to": "+15559876543",
                },
            }
        }
    )
    assert (webhook.call_id, webhook.call_control_id, webhook.attempt) == ("test_call_id", "test_ccid", 1)
    assert webhook.occurred_at is None


def test_without_a_session_the_control_id_is_the_call() -> None:
    webhook = parse({"data": {"payload": {"call_control_id": "v3:abc"}}})
    assert webhook.call_id == webhook.call_control_id == "v3:abc"
    assert webhook.type == "unknown"


def test_without_a_control_id_the_session_is_enough() -> None:
    assert parse({"data": {"payload": {"call_session_id": "s"}}}).call_control_id == ""


def test_an_event_without_an_id_gets_one_that_is_stable_over_redelivery_and_unique() -> None:
    message = event("c")
    del message["data"]["id"]
    again = message | {"meta": {"attempt": 2}}
    other = {"data": message["data"] | {"event_type": "call.hangup"}}
    assert parse(message).event_id == parse(again).event_id != parse(other).event_id


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff", b"null", b"[]", b'"text"', b"{}", b'{"data": 1}', b'{"data": {}}']
)
def test_a_webhook_that_names_no_call_is_unusable(body: bytes) -> None:
    with pytest.raises(EnvelopeError):
        parse_webhook(body)


def test_an_unusable_event_is_kept_under_the_best_id_it_has() -> None:
    with pytest.raises(EnvelopeError) as raised:
        parse({"data": {"id": "evt", "payload": {"call_leg_id": "leg"}}})
    assert raised.value.best_known_id == "leg"
    with pytest.raises(EnvelopeError) as raised:
        parse({"data": {"id": "evt"}})
    assert raised.value.best_known_id == "evt"


@pytest.mark.parametrize("bad", [None, 5, "", " ", "a b", "a\n", "x" * 257, "naïve", {"a": 1}, ["a"], True])
def test_an_invalid_id_is_ignored(bad: object) -> None:
    assert call_id_of(bad, "control") == "control"
    assert call_id_of("session", bad) == "session"
    assert call_id_of(bad, bad) is None


@pytest.mark.parametrize(
    ("text", "micros"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("2026-03-03T19:52:31.123456Z", 1_772_567_551_123_456),
        ("2026-03-03T20:52:31.123456+01:00", 1_772_567_551_123_456),
        ("2026-03-03T19:52:31.5", 1_772_567_551_500_000),
        ("2026-03-03T19:52:31.123456789Z", 1_772_567_551_123_456),
        ("1969-12-31T23:59:59Z", None),
        ("0001-01-01T00:00:00+14:00", None),
        ("yesterday", None),
        ("", None),
        (1_772_567_551, None),
        (None, None),
    ],
)
def test_times_are_read_to_the_microsecond(text: object, micros: int | None) -> None:
    assert parse_time(text) == micros


@given(JSON)
def test_no_json_makes_the_parser_raise_another_error(message: Any) -> None:
    try:
        body = orjson.dumps(message)
    except (TypeError, orjson.JSONEncodeError):
        return
    for wrapped in (body, b'{"data":%b}' % body, b'{"data":{"payload":%b,"id":%b}}' % (body, body)):
        with suppress(EnvelopeError):
            parse_webhook(wrapped)
        for kind in (*WebhookType, "call.dtmf.received"):
            assert isinstance(parse_payload(kind, wrapped), WebhookPayload)


@given(JSON)
def test_extra_fields_of_any_kind_change_nothing(extra: Any) -> None:
    message = event("c", id="e", tags=extra)
    message["data"]["payload"]["telnyx_error"] = extra
    try:
        body = orjson.dumps(message)
    except (TypeError, orjson.JSONEncodeError):
        return
    assert parse_webhook(body) == parse(event("c", id="e"))


@given(JSON)
def test_optional_fields_of_a_wrong_type_count_as_absent(wrong: Any) -> None:
    message = event("c", event_type=wrong, occurred_at=wrong, id=wrong)
    message["data"]["payload"] |= {"from": wrong, "to": wrong}
    message["meta"] = wrong
    try:
        body = orjson.dumps(message)
    except (TypeError, orjson.JSONEncodeError):
        return
    assert parse_webhook(body).call_id == "c"


def test_an_event_without_an_id_gets_one_even_if_it_is_nested_too_deep_to_be_written() -> None:
    deep = b'{"a":' * 400 + b"1" + b"}" * 400
    body = b'{"data":{"payload":{"call_session_id":"c","x":' + deep + b"}}}"
    assert parse_webhook(body).event_id == parse_webhook(body).event_id
    assert parse_webhook(body).event_id != parse_webhook(body.replace(b":1}", b":2}")).event_id


def test_a_webhook_cannot_have_the_type_of_an_own_event() -> None:
    body = orjson.dumps({"data": {"event_type": "dispatchai.deadline", "payload": {"call_session_id": "call-1"}}})
    with pytest.raises(EnvelopeError, match="this program's own"):
        parse_webhook(body)


# ---- payloads ------------------------------------------------------------------------------------------------------


def payload(kind: str, **fields: object) -> WebhookPayload:
    return parse_payload(kind, orjson.dumps({"data": {"event_type": kind, "payload": fields}}))


def test_the_payload_of_each_event_that_the_program_uses_is_read() -> None:
    assert payload("call.initiated", direction="incoming") == CallInitiated(incoming=True)
    assert payload("call.initiated", direction="outgoing") == CallInitiated(incoming=False)
    assert payload("call.answered", direction="outgoing") == CallAnswered(incoming=False)
    assert payload("call.hangup", hangup_cause="normal_clearing") == CallHangup(hangup_cause="normal_clearing")
    assert payload("streaming.started", stream_url="wss://h/ws") == StreamingStarted()
    assert payload("streaming.stopped", stream_url="wss://h/ws") == StreamingStopped()
    assert payload("streaming.failed", failure_reason="connection_failed") == StreamingFailed()
    assert payload("call.dtmf.received", digit="1") == WebhookPayload()


@pytest.mark.parametrize("kind", [*WebhookType, "call.bridged"])
def test_an_event_of_the_transfer_leg_says_so(kind: str) -> None:
    assert payload(kind, client_state=TRANSFER_LEG_STATE).is_transfer_leg
    assert not payload(kind, client_state="b3RoZXI=").is_transfer_leg
    assert not payload(kind).is_transfer_leg


@pytest.mark.parametrize("wrong", [None, "", 1, True, [], {}])
def test_a_leg_whose_direction_is_not_readable_counts_as_incoming(wrong: object) -> None:
    assert payload("call.initiated", direction=wrong) == payload("call.initiated") == CallInitiated(incoming=True)


@pytest.mark.parametrize("wrong", [None, "", 1, True, [], {}])
def test_a_hangup_cause_of_a_wrong_type_counts_as_absent(wrong: object) -> None:
    assert payload("call.hangup", hangup_cause=wrong) == CallHangup(hangup_cause=None)


@given(st.binary(max_size=200), st.sampled_from([*WebhookType, "call.bridged"]))
def test_a_body_that_is_not_readable_has_an_empty_payload(body: bytes, kind: str) -> None:
    assert parse_payload(kind, body) == parse_payload(kind, b"")
