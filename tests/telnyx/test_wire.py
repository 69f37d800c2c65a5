"""The carrier's JSON becomes typed values; what is missing, extra or of a wrong type harms nothing."""

from __future__ import annotations

import base64
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dispatchai.records import Track
from dispatchai.telnyx.wire import (
    BadMessage,
    BadMessageKind,
    CarrierError,
    Connected,
    EnvelopeError,
    Media,
    MediaFormat,
    MediaMessage,
    Notice,
    Start,
    Stop,
    call_id_of,
    parse_media_json,
    parse_media_message,
    parse_time,
    parse_webhook,
)
from tests.support.gateway import event, media, start

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def read(message: str | bytes) -> MediaMessage:
    """A message of the media socket, which comes as UTF-8."""
    return parse_media_message(message.encode() if isinstance(message, str) else message)


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


def test_an_event_without_an_id_has_the_same_one_on_redelivery_and_another_event_another() -> None:
    message = event("c")
    del message["data"]["id"]
    again = message | {"meta": {"attempt": 2}}
    other = {"data": message["data"] | {"event_type": "call.hangup"}}
    assert parse(message).event_id == parse(again).event_id != parse(other).event_id


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff", b"null", b"[]", b'"text"', b"{}", b'{"data": 1}', b'{"data": {}}']
)
def test_what_names_no_call_is_unusable(body: bytes) -> None:
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
def test_an_id_that_is_none_is_passed_over(bad: object) -> None:
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
def test_no_json_makes_the_parsers_fail_in_another_way(message: Any) -> None:
    try:
        body = orjson.dumps(message)
    except (TypeError, orjson.JSONEncodeError):
        return
    for wrapped in (body, b'{"data":%b}' % body, b'{"data":{"payload":%b,"id":%b}}' % (body, body)):
        with suppress(EnvelopeError):
            parse_webhook(wrapped)
    for wrapped in (
        body,
        b'{"event":%b}' % body,
        b'{"event":"start","start":%b}' % body,
        b'{"event":"media","media":%b}' % body,
        b'{"event":"media","media":{"track":%b,"chunk":%b,"payload":%b}}' % (body, body, body),
    ):
        with suppress(BadMessage):
            read(wrapped)


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


# ---- media ---------------------------------------------------------------------------------------------------------


def test_the_messages_of_a_stream_are_read() -> None:
    assert read('{"event":"connected","version":"1.0.0"}') == Connected()
    assert read(start("c", stream_id="s")) == Start("s", "c", "v3:c", MediaFormat("PCMU", 8000, 1))
    assert read(media(7, b"abc")) == Media(Track.INBOUND, 7, b"abc")
    assert read('{"event":"dtmf","dtmf":{"digit":"1"}}') == Notice("dtmf")
    assert read('{"event":"mark","mark":{"name":"x"}}') == Notice("mark")
    assert read('{"event":"error","payload":{"code":100003,"title":"malformed_frame"}}') == CarrierError("100003")
    assert read('{"event":"stop","stop":{}}') == Stop()


@pytest.mark.parametrize(
    ("name", "track"),
    [
        ("inbound", Track.INBOUND),
        ("inbound_track", Track.INBOUND),
        ("outbound", Track.OUTBOUND),
        ("outbound_track", Track.OUTBOUND),
    ],
)
def test_both_spellings_of_a_track_are_read(name: str, track: Track) -> None:
    assert read(media(1, b"a", track=name)) == Media(track, 1, b"a")


def test_numbers_may_be_numbers() -> None:
    message = '{"event":"media","media":{"track":"inbound","chunk":12,"payload":"YQ=="}}'
    assert read(message) == Media(Track.INBOUND, 12, b"a")


def test_a_stream_without_session_stream_id_or_format_starts_all_the_same() -> None:
    message = '{"event":"start","start":{"call_control_id":"v3:x"}}'
    assert read(message) == Start(None, None, "v3:x", None)


def media_with(**changes: object) -> bytes:
    fields = {"track": "inbound", "chunk": "1", "payload": "YQ=="} | changes
    return orjson.dumps({"event": "media", "media": fields})


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("{", BadMessageKind.JSON),
        ("[]", BadMessageKind.JSON),
        ("1", BadMessageKind.JSON),
        (b"\xff", BadMessageKind.JSON),
        (b'{"event":"stop","of":"\xff"}', BadMessageKind.JSON),
        ("{}", BadMessageKind.EVENT),
        ('{"event":"future"}', BadMessageKind.EVENT),
        ('{"event":["media"]}', BadMessageKind.EVENT),
        ('{"event":"media"}', BadMessageKind.FIELDS),
        ('{"event":"media","media":[]}', BadMessageKind.FIELDS),
        (media_with(track="sideways"), BadMessageKind.FIELDS),
        (media_with(track=[]), BadMessageKind.FIELDS),
        (media_with(chunk=1 << 63), BadMessageKind.FIELDS),
        (media_with(chunk="-1"), BadMessageKind.FIELDS),
        (media_with(chunk=-1), BadMessageKind.FIELDS),
        (media_with(chunk="1.5"), BadMessageKind.FIELDS),
        (media_with(chunk="9" * 5000), BadMessageKind.FIELDS),
        (media_with(chunk=True), BadMessageKind.FIELDS),
        (media_with(payload=None), BadMessageKind.FIELDS),
        (media_with(payload="YQ"), BadMessageKind.BASE64),
        (media_with(payload="Y Q=="), BadMessageKind.BASE64),
        (media_with(payload="µ"), BadMessageKind.BASE64),
        (media_with(payload=""), BadMessageKind.BASE64),
        (media(1).encode().replace(b'"}}', b'\xff"}}'), BadMessageKind.JSON),
        ('{"event":"start"}', BadMessageKind.FIELDS),
        ('{"event":"start","start":{"call_session_id":"s"}}', BadMessageKind.FIELDS),
    ],
)
def test_an_unusable_message_says_why(message: str | bytes, kind: BadMessageKind) -> None:
    with pytest.raises(BadMessage) as raised:
        read(message)
    assert raised.value.kind is kind
    assert str(raised.value) == kind.value


@given(st.binary(min_size=1, max_size=2000), st.integers(1, 1 << 40))
def test_audio_comes_out_as_it_went_in(audio: bytes, chunk: int) -> None:
    encoded = base64.b64encode(audio).decode()
    assert read(media_with(chunk=str(chunk), payload=encoded)) == Media(Track.INBOUND, chunk, audio)


USUAL = media(7, b"some audio").encode()
"""A message letter by letter as the carrier writes it."""

EDITS = st.lists(
    st.tuples(
        st.integers(0, len(USUAL)),
        st.integers(0, 4),
        st.binary(max_size=3)
        | st.sampled_from([b'"', b"\\", b" ", b"=", b"0", b"1" * 20, b"}", b',"x":"y"', b"\\u0041"]),
    ),
    max_size=2,
)


@given(EDITS)
@example([(len(USUAL) - 3, 0, b'","payload":"YQ==')])
def test_the_carriers_own_spelling_is_read_as_any_json_is(edits: list[tuple[int, int, bytes]]) -> None:
    message = USUAL
    for at, length, new in edits:
        message = message[:at] + new + message[at + length :]

    def outcome(parse: Callable[[bytes], MediaMessage]) -> MediaMessage | BadMessageKind:
        try:
            return parse(message)
        except BadMessage as bad:
            return bad.kind

    assert outcome(parse_media_message) == outcome(parse_media_json)


@given(st.binary(min_size=1, max_size=400), st.integers(0, 999_999_999_999), st.sampled_from(["inbound", "outbound"]))
def test_audio_in_the_carriers_own_spelling_comes_out_as_it_went_in(audio: bytes, chunk: int, track: str) -> None:
    message = media(chunk, audio, track=track).encode()
    assert parse_media_message(message) == parse_media_json(message)
    assert read(message) == Media(Track(track.upper()), chunk, audio)


def test_a_first_frame_may_be_number_0() -> None:
    assert read(media_with(chunk="0")) == Media(Track.INBOUND, 0, b"a")


@pytest.mark.parametrize("rate", [-1, 1 << 63, (1 << 64) - 1, "9" * 18, 1e99, None, [], "8 kHz"])
def test_a_sample_rate_that_makes_no_sense_is_0(rate: object) -> None:
    message = {"event": "start", "start": {"call_control_id": "v3:x", "media_format": {"encoding": "L16"}}}
    message["start"]["media_format"]["sample_rate"] = rate  # type: ignore[index]
    opened = read(orjson.dumps(message))
    assert isinstance(opened, Start)
    assert opened.media_format == MediaFormat("L16", 0, 1)


def test_an_event_without_an_id_that_is_nested_too_deep_to_write_again_still_has_one_id() -> None:
    deep = b'{"a":' * 400 + b"1" + b"}" * 400
    body = b'{"data":{"payload":{"call_session_id":"c","x":' + deep + b"}}}"
    assert parse_webhook(body).event_id == parse_webhook(body).event_id
    assert parse_webhook(body).event_id != parse_webhook(body.replace(b":1}", b":2}")).event_id


def test_nobody_outside_can_write_the_programs_own_events() -> None:
    body = orjson.dumps({"data": {"event_type": "dispatchai.deadline", "payload": {"call_session_id": "call-1"}}})
    with pytest.raises(EnvelopeError, match="this program's own"):
        parse_webhook(body)
