"""What `audio-frames` holds of a media stream: its frames, its codec, its order."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import orjson
import pytest

from dispatchai.audio import g711
from dispatchai.gateway.media_stream import OTHER_TRACK_MAX, QUIET_S, Stream
from dispatchai.gateway.metrics import GatewayMetrics, SocketRefusal
from dispatchai.kafka.connection import KafkaConnection
from dispatchai.records import AudioFrame, FrameKind, Track, decode_as
from dispatchai.telnyx.media_messages import Media, MediaFormat
from tests.gateway.media import closed, hold_up_the_loop, send, until, whole_call
from tests.support.gateway import (
    CONNECTED,
    STOP,
    Gateway,
    event,
    frames_of,
    media,
    new_call,
    outline,
    records_of,
    running_gateway,
    start,
    stream_token,
    text,
)

if TYPE_CHECKING:
    pass


@pytest.mark.usefixtures("topics")
async def test_each_frame_is_one_unchanged_record_in_order_between_start_and_end(broker: KafkaConnection) -> None:
    call_id = new_call()
    ticks = iter(range(1_000_000_000, 2_000_000_000))
    async with running_gateway(broker, clock=lambda: next(ticks)) as gateway:
        assert await whole_call(gateway, call_id, *[media(chunk) for chunk in range(1, 201)]) == 1000
        frames = await frames_of(broker, call_id)
    assert outline(frames) == ["START", *map(str, range(1, 201)), "END:201:stop"]
    assert frames[7] == AudioFrame(
        stream_id=frames[0].stream_id,
        kind=FrameKind.FRAME,
        track=Track.INBOUND,
        sequence=7,
        captured_at=frames[7].captured_at,
        encoding="PCMU",
        sample_rate=8000,
        payload=(7).to_bytes(4, "big") * 40,
        detail=None,
    )
    assert [frame.captured_at for frame in frames] == sorted(frame.captured_at for frame in frames)
    assert (frames[0].payload, frames[0].sequence, frames[0].encoding) == (b"", 0, "PCMU")


@pytest.mark.usefixtures("topics")
@pytest.mark.parametrize("jump_s", [2 * 3600, -2 * 3600], ids=["forward", "back"])
async def test_when_the_clock_jumps_all_frames_are_stored_and_webhooks_as_soon_as_it_is_right_again(
    broker: KafkaConnection, jump_s: int
) -> None:
    call_id, off_s = new_call(), 0
    hangup = orjson.dumps(event(call_id, event_type="call.hangup"))
    async with running_gateway(broker, clock=lambda: time.time_ns() // 1000 + off_s * 1_000_000) as gateway:
        async with gateway.media(call_id, token=stream_token(call_id, valid_s=4 * 3600)) as ws:
            await send(ws, CONNECTED, start(call_id), *[media(chunk) for chunk in range(1, 51)])
            await until(gateway, lambda metrics: metrics.frames >= 50)
            off_s = jump_s
            status, answer = await gateway.webhook(hangup)
            assert (status, answer["error"]["code"]) == (503, "signature_stale")
            await send(ws, *[media(chunk) for chunk in range(51, 101)], STOP)
            assert await closed(ws) == 1000
        off_s = 0
        assert (await gateway.webhook(hangup))[0] == 200, "the carrier tries again"
        frames = await frames_of(broker, call_id)
    assert outline(frames) == ["START", *map(str, range(1, 101)), "END:101:stop"]
    before, after = frames[50].captured_at, frames[51].captured_at
    assert abs(after - before - jump_s * 1_000_000) < 60_000_000


async def test_frames_of_simultaneous_calls_do_not_mix(gateway: Gateway, embedded: KafkaConnection) -> None:
    calls = [new_call() for _ in range(4)]
    await asyncio.gather(
        *(
            whole_call(gateway, call, *[media(chunk, b"%d" % index) for chunk in range(1, 51)])
            for index, call in enumerate(calls, 1)
        )
    )
    for index, call in enumerate(calls, 1):
        frames = await frames_of(embedded, call)
        assert outline(frames) == ["START", *map(str, range(1, 51)), "END:51:stop"]
        assert {frame.payload for frame in frames[1:-1]} == {b"%d" % index}
    assert gateway.metrics.frames == 200


async def test_events_and_audio_of_a_call_have_the_same_partition_number(
    gateway: Gateway, embedded: KafkaConnection
) -> None:
    for _ in range(8):
        call_id = new_call()
        await gateway.webhook(text(event(call_id)).encode())
        await whole_call(gateway, call_id, media(1))
        (stored, *_) = await records_of(embedded, "call-events", call_id, bool)
        (frame, *_) = await records_of(embedded, "audio-frames", call_id, bool)
        assert stored.partition == frame.partition


async def test_both_tracks_keep_their_own_numbers(gateway: Gateway, embedded: KafkaConnection) -> None:
    call_id = new_call()
    await whole_call(
        gateway,
        call_id,
        media(1),
        media(1, b"o", track="outbound"),
        media(2, track="inbound_track"),
        media(2, b"o", track="outbound_track"),
    )
    frames = await frames_of(embedded, call_id)
    assert [(frame.track, frame.sequence) for frame in frames[1:-1]] == [
        (Track.INBOUND, 1),
        (Track.OUTBOUND, 1),
        (Track.INBOUND, 2),
        (Track.OUTBOUND, 2),
    ]
    assert outline(frames)[-1] == "END:3:stop"


@pytest.mark.parametrize("encoding", ["PCMU", "PCMA", "L16", "pcmu"])
async def test_supported_codecs_are_recorded_unchanged(
    gateway: Gateway, embedded: KafkaConnection, encoding: str
) -> None:
    call_id = new_call()
    async with gateway.media(call_id) as ws:
        media_format = {"encoding": encoding, "sample_rate": "16000", "channels": 1}
        await send(ws, start(call_id, media_format=media_format), media(1, b"\x01\x02\x03"), STOP)
        await closed(ws)
    frames = await frames_of(embedded, call_id)
    assert {(frame.encoding, frame.sample_rate) for frame in frames} == {(encoding.upper(), 16_000)}
    assert frames[1].payload == b"\x01\x02\x03"


@pytest.mark.parametrize(
    ("media_format", "says"),
    [
        ({"encoding": "G722", "sample_rate": 8000, "channels": 1}, "codec G722"),
        ({"encoding": "OPUS", "sample_rate": 48000, "channels": 1}, "codec OPUS"),
        ({"encoding": "L16", "sample_rate": 8000, "channels": 2}, "2 channels"),
        ({"encoding": "L16", "sample_rate": 1, "channels": 1}, "sample rate of 1 "),
        ({"encoding": "L16", "sample_rate": 44_100, "channels": 1}, "sample rate of 44100 "),
        ({"encoding": "PCMU", "sample_rate": (1 << 64) - 1, "channels": 1}, "sample rate of 0 "),
    ],
)
async def test_a_format_that_cannot_be_decoded_is_refused_and_the_reason_recorded(
    gateway: Gateway, embedded: KafkaConnection, media_format: dict[str, Any], says: str
) -> None:
    call_id = new_call()
    async with gateway.media(call_id) as ws:
        await send(ws, CONNECTED, start(call_id, media_format=media_format))
        assert await closed(ws) == 1003
    opened, ended = await frames_of(embedded, call_id)
    assert (opened.kind, opened.encoding) == (FrameKind.START, media_format["encoding"])
    assert (ended.kind, ended.sequence) == (FrameKind.END, 1)
    assert ended.detail is not None
    assert ended.detail.startswith("refused: ")
    assert says in ended.detail
    assert gateway.metrics.sockets_refused == {SocketRefusal.CODEC: 1}


@pytest.mark.parametrize(
    ("payload", "encoding"), [(bytes(160), "PCMU"), (bytes(80), "PCMU"), (bytes(320), "L16"), (bytes(792), "L16")]
)
async def test_without_a_format_the_length_of_the_first_frame_decides_and_start_says_so(
    gateway: Gateway, embedded: KafkaConnection, payload: bytes, encoding: str
) -> None:
    call_id = new_call()
    async with gateway.media(call_id) as ws:
        await send(ws, start(call_id, media_format=False), media(1, payload), media(2, payload), STOP)
        await closed(ws)
    frames = await frames_of(embedded, call_id)
    assert outline(frames) == ["START", "1", "2", "END:3:stop"]
    assert {frame.encoding for frame in frames} == {encoding}
    assert f"{len(payload)} bytes" in str(frames[0].detail)


async def test_a_stream_without_format_and_frames_still_has_start_and_end(
    gateway: Gateway, embedded: KafkaConnection
) -> None:
    call_id = new_call()
    async with gateway.media(call_id) as ws:
        await send(ws, start(call_id, media_format=False), STOP)
        await closed(ws)
    assert outline(await frames_of(embedded, call_id)) == ["START", "END:1:stop"]


# ---- order ---------------------------------------------------------------------------------------------------------


async def test_shuffled_repeated_and_lost_frames_are_put_in_order_and_counted(
    gateway: Gateway, embedded: KafkaConnection
) -> None:
    call_id = new_call()
    arriving = [1, 3, 2, 2, 4, 6, 7, 8, 9, 10, 5, 10, 12, 11]
    await whole_call(gateway, call_id, *map(media, arriving))
    frames = await frames_of(embedded, call_id)
    assert outline(frames) == ["START", *["1", "2", "3", "4", "6", "7", "8", "9", "10", "11", "12"], "END:13:stop"]
    metrics = gateway.metrics
    assert (metrics.frames, metrics.frames_duplicate, metrics.frames_late) == (11, 2, 1)
    assert metrics.frames_reordered == 2


async def test_frames_that_wait_for_a_lost_one_are_recorded_when_the_stream_ends(
    gateway: Gateway, embedded: KafkaConnection
) -> None:
    call_id = new_call()
    await whole_call(gateway, call_id, media(1), media(3), media(4))
    assert outline(await frames_of(embedded, call_id)) == ["START", "1", "3", "4", "END:5:stop"]


async def test_held_frames_are_recorded_within_a_bounded_time_even_if_nothing_follows(
    gateway: Gateway, embedded: KafkaConnection
) -> None:
    call_id = new_call()
    async with gateway.media(call_id) as ws:
        await send(ws, start(call_id), media(1), media(3), media(1, b"o", track="outbound"))
        await records_of(embedded, "audio-frames", call_id, lambda records: len(records) == 4)
        # The stream is still open. The frame that was given up is late now, and the next ones are recorded.
        await send(ws, media(2), media(4), STOP)
        await closed(ws)
    frames = await frames_of(embedded, call_id)
    assert [f"{frame.track[0]}{frame.sequence}" for frame in frames[1:-1]] == ["I1", "O1", "I3", "I4"]
    assert gateway.metrics.frames_late == 1


async def test_a_gateway_that_falls_behind_does_not_take_its_own_delay_for_silence(
    gateway: Gateway, embedded: KafkaConnection
) -> None:
    call_id = new_call()
    async with gateway.media(call_id) as ws:
        await send(ws, start(call_id), media(1), media(3))
        await records_of(embedded, "audio-frames", call_id, lambda records: len(records) == 2)
        await send(ws, media(2))
        hold_up_the_loop(2 * QUIET_S)
        await send(ws, STOP)
        await closed(ws)
    assert outline(await frames_of(embedded, call_id)) == ["START", "1", "2", "3", "END:4:stop"]
    assert gateway.metrics.frames_late == 0


async def test_a_held_frame_does_not_wait_for_ever_while_the_other_track_continues(
    gateway: Gateway, embedded: KafkaConnection
) -> None:
    call_id = new_call()
    async with gateway.media(call_id) as ws:
        beside = [media(n, track="outbound") for n in range(1, OTHER_TRACK_MAX + 2)]
        await send(ws, start(call_id), media(1), media(3), *beside, media(2), STOP)
        await closed(ws)
    frames = await frames_of(embedded, call_id)
    assert [frame.sequence for frame in frames[1:-1] if frame.track is Track.INBOUND] == [1, 3]
    assert gateway.metrics.frames_late == 1


async def test_a_track_that_counts_from_0_is_recorded_from_1(gateway: Gateway, embedded: KafkaConnection) -> None:
    call_id = new_call()
    await whole_call(gateway, call_id, media(0), media(1), media(1, b"o", track="outbound"), media(2))
    frames = await frames_of(embedded, call_id)
    assert [(frame.track, frame.sequence) for frame in frames[1:-1]] == [
        (Track.INBOUND, 1),
        (Track.INBOUND, 2),
        (Track.OUTBOUND, 1),
        (Track.INBOUND, 3),
    ]
    assert outline(frames)[-1] == "END:4:stop"


# ---- the byte order of L16 -----------------------------------------------------------------------------------------

VOICE = (6000 * np.sin(np.arange(1600) * 2 * np.pi * 220 / 8000)).astype("<i2")
"""200 ms of a hum at 8 kHz."""


def linear(chunk: int, order: str, samples: npt.NDArray[np.int16] = VOICE) -> str:
    """20 ms of `samples`, in `order`: < little-endian, > big-endian."""
    return media(chunk, samples[(chunk - 1) % 10 * 160 :][:160].astype(f"{order}i2").tobytes())


@pytest.mark.parametrize(
    ("order", "configured", "recorded"),
    [("<", "L16", "L16"), (">", "L16", "L16BE"), ("<", "L16BE", "L16"), (">", "L16BE", "L16BE")],
)
async def test_l16_is_recorded_in_the_byte_order_that_its_audio_has(
    embedded: KafkaConnection, order: str, configured: str, recorded: str
) -> None:
    call_id = new_call()
    async with running_gateway(embedded, l16_encoding=configured) as gateway, gateway.media(call_id) as ws:
        media_format = {"encoding": "L16", "sample_rate": 8000, "channels": 1}
        await send(ws, start(call_id, media_format=media_format), *(linear(chunk, order) for chunk in range(1, 11)))
        # The byte order is known after 50 ms: nothing waits for the end.
        await records_of(embedded, "audio-frames", call_id, lambda records: len(records) == 11)
        await send(ws, STOP)
        await closed(ws)
    frames = await frames_of(embedded, call_id)
    assert outline(frames) == ["START", *map(str, range(1, 11)), "END:11:stop"]
    assert {frame.encoding for frame in frames} == {recorded}
    heard = np.concatenate([g711.decode(frame.encoding, frame.payload) for frame in frames[1:-1]])
    assert heard.tolist() == VOICE.tolist()
    assert gateway.metrics.streams_swapped == (configured != recorded)
    assert ("L16_BYTE_ORDER" in str(frames[0].detail)) == (configured != recorded)


@pytest.mark.parametrize("configured", ["L16", "L16BE"])
async def test_silence_shows_no_byte_order_and_is_held_back_for_at_most_a_second(
    embedded: KafkaConnection, configured: str
) -> None:
    call_id = new_call()
    async with running_gateway(embedded, l16_encoding=configured) as gateway, gateway.media(call_id) as ws:
        media_format = {"encoding": "L16", "sample_rate": 16_000, "channels": 1}
        await send(ws, start(call_id, media_format=media_format), *(media(n, bytes(640)) for n in range(1, 51)))
        await records_of(embedded, "audio-frames", call_id, lambda records: len(records) == 51)
        await send(ws, media(51, bytes(640)), STOP)
        await closed(ws)
    frames = await frames_of(embedded, call_id)
    assert outline(frames) == ["START", *map(str, range(1, 52)), "END:52:stop"]
    assert {frame.encoding for frame in frames} == {configured}
    assert frames[0].captured_at <= frames[1].captured_at


async def test_l16_whose_sender_falls_silent_before_its_byte_order_is_known_is_recorded(
    gateway: Gateway, embedded: KafkaConnection
) -> None:
    call_id = new_call()
    async with gateway.media(call_id) as ws:
        media_format = {"encoding": "L16", "sample_rate": 8000, "channels": 1}
        await send(ws, start(call_id, media_format=media_format), media(1, bytes(320)))
        await records_of(embedded, "audio-frames", call_id, lambda records: len(records) == 2)
        await send(ws, media(2, bytes(320)), STOP)
        await closed(ws)
    assert outline(await frames_of(embedded, call_id)) == ["START", "1", "2", "END:3:stop"]


def test_the_byte_order_of_a_stream_is_found_however_late_its_audio_begins() -> None:
    records: list[AudioFrame] = []
    stream = Stream(
        "s",
        MediaFormat("L16", 8000, 1),
        lambda record, _at, _never_drop: records.append(decode_as(AudioFrame, record)),
        GatewayMetrics(),
        now=0,
    )
    assert not stream.holds
    stream.release()
    assert records == []
    for chunk in range(1, 11):
        stream.receive(Media(Track.INBOUND, chunk, VOICE[(chunk - 1) * 160 :][:160].astype(">i2").tobytes()), now=chunk)
    assert [frame.encoding for frame in records] == ["L16BE"] * 11
    assert not stream.holds
