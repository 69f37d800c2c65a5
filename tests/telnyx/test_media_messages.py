"""Messages of the media socket become typed values; what is missing, extra or of a wrong type harms nothing."""

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
from dispatchai.telnyx.media_messages import (
    BadMessage,
    BadMessageKind,
    CarrierError,
    Connected,
    Media,
    MediaFormat,
    MediaMessage,
    Notice,
    Start,
    Stop,
    parse_media_json,
    parse_media_message,
)
from tests.support.gateway import media, start
from tests.telnyx.strategies import JSON


def read(message: str | bytes) -> MediaMessage:
    """A message of the media socket, which comes as UTF-8."""
    return parse_media_message(message.encode() if isinstance(message, str) else message)


@given(JSON)
def test_no_json_makes_the_parser_raise_another_error(message: Any) -> None:
    try:
        body = orjson.dumps(message)
    except (TypeError, orjson.JSONEncodeError):
        return
    for wrapped in (
        body,
        b'{"event":%b}' % body,
        b'{"event":"start","start":%b}' % body,
        b'{"event":"media","media":%b}' % body,
        b'{"event":"media","media":{"track":%b,"chunk":%b,"payload":%b}}' % (body, body, body),
    ):
        with suppress(BadMessage):
            read(wrapped)


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


def test_a_number_may_be_a_json_number() -> None:
    message = '{"event":"media","media":{"track":"inbound","chunk":12,"payload":"YQ=="}}'
    assert read(message) == Media(Track.INBOUND, 12, b"a")


def test_a_stream_may_start_without_session_stream_id_or_format() -> None:
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
def test_audio_is_decoded_unchanged(audio: bytes, chunk: int) -> None:
    encoded = base64.b64encode(audio).decode()
    assert read(media_with(chunk=str(chunk), payload=encoded)) == Media(Track.INBOUND, chunk, audio)


USUAL = media(7, b"some audio").encode()
"""A message exactly as the carrier writes it."""

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
def test_the_carriers_own_spelling_is_read_like_any_other_json(edits: list[tuple[int, int, bytes]]) -> None:
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
def test_audio_in_the_carriers_own_spelling_is_decoded_unchanged(audio: bytes, chunk: int, track: str) -> None:
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
