"""Who may open a media stream, what ends it, and that a bad one harms no other."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import pytest
from aiohttp import WSServerHandshakeError

from dispatchai.gateway.media_stream import Stream
from dispatchai.gateway.metrics import GatewayMetrics, SocketRefusal
from dispatchai.kafka.admin import apply
from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.embedded_broker import EmbeddedBroker
from dispatchai.kafka.topics import Topics
from dispatchai.records import AudioFrame, FrameKind, Track, decode_as
from dispatchai.telnyx import stream_tokens
from dispatchai.telnyx.media_messages import BadMessageKind, Media, MediaFormat
from dispatchai.telnyx.signatures import WebhookVerifier
from tests.gateway.media import acknowledged, closed, send, whole_call
from tests.support.gateway import (
    CONNECTED,
    STOP,
    STREAM_SECRET,
    Gateway,
    control_id,
    frames_of,
    media,
    new_call,
    outline,
    records_of,
    running_gateway,
    start,
    stream_token,
)

# ---- who may open a stream -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "token",
    [
        "",
        "guess",
        stream_token("call-x", valid_s=-1),
        stream_token("call-x", secret=b"not the gateway's secret"),
        stream_token("call-x")[:-1],
    ],
    ids=["none", "invented", "expired", "forged", "truncated"],
)
async def test_a_socket_without_a_valid_token_is_not_opened(gateway: Gateway, token: str) -> None:
    with pytest.raises(WSServerHandshakeError) as raised:
        async with gateway.http.ws_connect("/ws", headers={stream_tokens.HEADER: token} if token else {}):
            pass
    assert raised.value.status == 403
    assert gateway.metrics.sockets_refused == {SocketRefusal.TOKEN: 1}
    assert gateway.metrics.sockets_opened == 0


async def test_a_token_of_another_call_closes_the_socket_before_any_audio_is_taken(
    gateway: Gateway, embedded: KafkaConnection
) -> None:
    victim = new_call()
    async with gateway.media(victim, token=stream_token(new_call())) as ws:
        await send(ws, CONNECTED, start(victim), media(1))
        assert await closed(ws) == 1008
    assert gateway.metrics.sockets_refused == {SocketRefusal.OTHER_CALL: 1}
    # The call's own stream is the first on the topic.
    await whole_call(gateway, victim, media(1, b"own"))
    frames = await frames_of(embedded, victim)
    assert outline(frames) == ["START", "1", "END:2:stop"]
    assert frames[1].payload == b"own"


async def test_the_token_of_a_leg_does_not_open_a_stream_of_another_session(
    gateway: Gateway, embedded: KafkaConnection
) -> None:
    own, victim = new_call(), new_call()
    async with gateway.media(own) as ws:
        await send(ws, start(own, call_session_id=victim), media(1))
        assert await closed(ws) == 1008
    assert gateway.metrics.sockets_refused == {SocketRefusal.OTHER_CALL: 1}
    assert gateway.metrics.frames == 0
    await whole_call(gateway, victim, media(1, b"own"))
    assert [frame.payload for frame in await frames_of(embedded, victim)] == [b"", b"own", b""]


async def test_without_a_secret_no_socket_is_opened_unless_verification_is_off(embedded: KafkaConnection) -> None:
    call_id = new_call()
    async with running_gateway(embedded, stream_secret=None) as gateway:
        with pytest.raises(WSServerHandshakeError, match="403"):
            async with gateway.media(call_id):
                pass
    async with (
        running_gateway(
            embedded, stream_secret=None, verify_webhooks=False, verifier=WebhookVerifier.of((), "", 300)
        ) as gateway,
        gateway.media(call_id, token="") as ws,
    ):
        await send(ws, start(call_id), media(1), STOP)
        await closed(ws)
    assert outline(await frames_of(embedded, call_id)) == ["START", "1", "END:2:stop"]


async def test_a_socket_that_never_starts_is_closed(embedded: KafkaConnection) -> None:
    call_id = new_call()
    async with running_gateway(embedded, start_timeout_s=1.0) as gateway:
        async with gateway.media(call_id) as ws:
            await send(ws, CONNECTED)
            assert await closed(ws) == 1008
        assert gateway.metrics.sockets_refused == {SocketRefusal.NO_START: 1}
        # A stream that has started may last longer.
        async with gateway.media(call_id) as ws:
            await send(ws, start(call_id), media(1))
            await asyncio.sleep(1.1)
            await send(ws, media(2), STOP)
            assert await closed(ws) == 1000
    assert outline(await frames_of(embedded, call_id)) == ["START", "1", "2", "END:3:stop"]


# ---- bad messages --------------------------------------------------------------------------------------------------

BAD = {
    BadMessageKind.JSON: "{",
    BadMessageKind.EVENT: '{"event":"future"}',
    BadMessageKind.FIELDS: '{"event":"media","media":{"track":"inbound"}}',
    BadMessageKind.BASE64: '{"event":"media","media":{"track":"inbound","chunk":"2","payload":"%%%"}}',
    BadMessageKind.ORDER: start("another-start"),
}


@pytest.mark.parametrize("kind", list(BAD))
async def test_a_bad_message_is_dropped_and_counted_and_the_call_goes_on(
    gateway: Gateway, embedded: KafkaConnection, kind: BadMessageKind
) -> None:
    call_id = new_call()
    assert await whole_call(gateway, call_id, media(1), BAD[kind], media(2), BAD[kind], media(3)) == 1000
    assert outline(await frames_of(embedded, call_id)) == ["START", "1", "2", "3", "END:4:stop"]
    assert gateway.metrics.bad_messages == {kind: 2}


async def test_media_before_start_is_dropped_and_the_stream_may_still_start(
    gateway: Gateway, embedded: KafkaConnection
) -> None:
    call_id = new_call()
    async with gateway.media(call_id) as ws:
        await send(ws, CONNECTED, media(1), start(call_id), media(2), STOP)
        await closed(ws)
    assert outline(await frames_of(embedded, call_id)) == ["START", "2", "END:3:stop"]
    assert gateway.metrics.bad_messages == {BadMessageKind.ORDER: 1}


async def test_binary_messages_are_dropped(gateway: Gateway, embedded: KafkaConnection) -> None:
    call_id = new_call()
    async with gateway.media(call_id) as ws:
        await send(ws, start(call_id))
        await ws.send_bytes(media(1).encode())
        await send(ws, media(2), STOP)
        await closed(ws)
    assert outline(await frames_of(embedded, call_id)) == ["START", "2", "END:3:stop"]
    assert gateway.metrics.bad_messages == {BadMessageKind.BINARY: 1}


async def test_too_many_bad_messages_in_a_row_close_the_socket(gateway: Gateway, embedded: KafkaConnection) -> None:
    call_id = new_call()
    async with gateway.media(call_id) as ws:
        # Four bad ones in a row are tolerated, any number of times.
        await send(ws, start(call_id), *["{"] * 4, media(1), *["{"] * 4, media(2), *["{"] * 5)
        assert await closed(ws) == 1008
    assert outline(await frames_of(embedded, call_id)) == [
        "START",
        "1",
        "2",
        "END:3:closed: too many unusable messages",
    ]


async def test_notices_and_errors_of_the_carrier_do_not_end_the_stream(
    gateway: Gateway, embedded: KafkaConnection
) -> None:
    call_id = new_call()
    await whole_call(
        gateway,
        call_id,
        media(1),
        '{"event":"dtmf","dtmf":{"digit":"9"}}',
        '{"event":"mark","mark":{"name":"m"}}',
        '{"event":"error","payload":{"code":100003,"title":"malformed_frame"}}',
        media(2),
    )
    assert outline(await frames_of(embedded, call_id)) == ["START", "1", "2", "END:3:stop"]
    assert gateway.metrics.carrier_errors == 1


async def test_a_huge_message_ends_only_its_own_stream(gateway: Gateway, embedded: KafkaConnection) -> None:
    huge, healthy = new_call(), new_call()
    async with gateway.media(healthy) as other, gateway.media(huge) as ws:
        await send(other, start(healthy), media(1))
        await send(ws, start(huge), media(1), media(2, bytes(8000)))
        assert await closed(ws) == 1009
        await send(other, media(2), STOP)
        await closed(other)
    assert outline(await frames_of(embedded, huge)) == ["START", "1", "END:2:closed: code 1009"]
    assert outline(await frames_of(embedded, healthy)) == ["START", "1", "2", "END:3:stop"]


@pytest.mark.parametrize("how", ["abort", "close"])
async def test_a_stream_without_stop_ends_with_its_connection(
    gateway: Gateway, embedded: KafkaConnection, how: str
) -> None:
    call_id = new_call()
    ws = await gateway.media(call_id)
    await send(ws, start(call_id), media(1), media(2))
    if how == "abort":
        await records_of(embedded, "audio-frames", call_id, lambda records: len(records) == 3)
        ws.get_extra_info("socket").shutdown(2)
    else:
        await ws.close()
    detail = "closed" if how == "close" else "closed: code 1006"
    assert outline(await frames_of(embedded, call_id)) == ["START", "1", "2", f"END:3:{detail}"]
    await ws.close()


# ---- one stream per call -------------------------------------------------------------------------------------------


async def test_a_second_socket_of_a_call_replaces_the_first(gateway: Gateway, embedded: KafkaConnection) -> None:
    call_id = new_call()
    async with gateway.media(call_id) as first, gateway.media(call_id) as second:
        await send(first, start(call_id, stream_id="one"), media(1))
        await records_of(embedded, "audio-frames", call_id, lambda records: len(records) == 2)
        await send(second, start(call_id, stream_id="two"), media(1))
        assert await closed(first) == 1000
        await send(second, media(2), STOP)
        await closed(second)
    frames = await frames_of(embedded, call_id, ends=2)
    assert outline(frames) == ["START", "1", "END:2:replaced", "START", "1", "2", "END:3:stop"]
    assert [frame.stream_id.partition("~")[0] for frame in frames] == ["one"] * 3 + ["two"] * 4
    assert gateway.metrics.sockets_replaced == 1
    assert gateway.metrics.sockets_open == 0


async def test_a_second_socket_that_is_refused_does_not_affect_the_first(
    gateway: Gateway, embedded: KafkaConnection
) -> None:
    call_id = new_call()
    async with gateway.media(call_id) as first, gateway.media(call_id) as second:
        await send(first, start(call_id, stream_id="one"), media(1))
        await records_of(embedded, "audio-frames", call_id, lambda records: len(records) == 2)
        await send(second, start(call_id, stream_id="two", media_format={"encoding": "G722", "sample_rate": 8000}))
        assert await closed(second) == 1003
        await send(first, media(2), STOP)
        assert await closed(first) == 1000
    frames = await frames_of(embedded, call_id, ends=2)
    assert outline([frame for frame in frames if frame.stream_id.startswith("one~")]) == [
        "START",
        "1",
        "2",
        "END:3:stop",
    ]


async def test_a_call_whose_carrier_reconnects_three_times_has_four_streams_and_no_frame_twice(
    gateway: Gateway, embedded: KafkaConnection
) -> None:
    call_id = new_call()
    numbers = iter(range(1, 100))

    def frames(count: int) -> list[str]:
        return [media(chunk, f"frame {next(numbers)}".encode()) for chunk in range(1, count + 1)]

    async with gateway.media(call_id) as ws:
        await send(ws, start(call_id, stream_id="one"), *frames(3), STOP)
        await closed(ws)
    lost = await gateway.media(call_id)
    await send(lost, start(call_id, stream_id="two"), *frames(2))
    await records_of(embedded, "audio-frames", call_id, lambda records: len(records) == 8)
    # No stop and no close: the old connection is still open when the carrier reconnects with the same stream id.
    async with gateway.media(call_id) as ws:
        await send(ws, start(call_id, stream_id="two"), *frames(2))
        await records_of(embedded, "audio-frames", call_id, lambda records: len(records) == 12)
        await lost.close()
        await ws.close()
    async with gateway.media(call_id) as ws:
        await send(ws, start(call_id, stream_id="three"), *frames(1), STOP)
        await closed(ws)
    recorded = await frames_of(embedded, call_id, ends=4)
    assert outline(recorded) == [
        *("START", "1", "2", "3", "END:4:stop"),
        *("START", "1", "2", "END:3:replaced"),
        *("START", "1", "2", "END:3:closed"),
        *("START", "1", "END:2:stop"),
    ]
    assert len({frame.stream_id for frame in recorded}) == 4
    heard = [frame.payload.decode() for frame in recorded if frame.kind is FrameKind.FRAME]
    assert heard == [f"frame {number}" for number in range(1, 9)]


def test_nothing_is_recorded_of_a_stream_after_its_end() -> None:
    records: list[AudioFrame] = []
    stream = Stream(
        "s",
        MediaFormat("PCMU", 8000, 1),
        lambda record, _at, _never_drop: records.append(decode_as(AudioFrame, record)),
        GatewayMetrics(),
        now=0,
    )
    stream.receive(Media(Track.INBOUND, 1, b"a"), now=1)
    stream.end("replaced", now=2)
    stream.receive(Media(Track.INBOUND, 2, b"b"), now=3)
    stream.end("closed", now=4)
    assert outline(records) == ["START", "1", "END:2:replaced"]


async def test_a_repeated_stream_id_is_recorded_as_another_stream(gateway: Gateway, embedded: KafkaConnection) -> None:
    call_id = new_call()
    await whole_call(gateway, call_id, media(1))
    await whole_call(gateway, call_id, media(1))
    frames = await frames_of(embedded, call_id, ends=2)
    assert outline(frames) == ["START", "1", "END:2:stop"] * 2
    assert frames[0].stream_id != frames[3].stream_id
    assert [frame.stream_id for frame in frames] == [frames[0].stream_id] * 3 + [frames[3].stream_id] * 3
    assert {frame.stream_id.partition("~")[0] for frame in frames} == {"stream-1"}


# ---- harm ----------------------------------------------------------------------------------------------------------


async def test_a_healthy_call_keeps_every_frame_while_bad_ones_come_and_go(
    gateway: Gateway, embedded: KafkaConnection
) -> None:
    healthy = new_call()
    last = 300
    done = asyncio.Event()

    async def misbehave() -> None:
        other = new_call()
        while not done.is_set():
            with pytest.raises(WSServerHandshakeError):
                await gateway.http.ws_connect("/ws", headers={stream_tokens.HEADER: "guess"})
            async with gateway.media(other) as ws:
                await send(ws, *BAD.values(), media(1))
                await closed(ws)
            async with gateway.media(other, token=stream_token("third")) as ws:
                await send(ws, start(healthy), media(7))
                await closed(ws)
            async with gateway.media(other) as ws:
                await send(ws, start(other), media(1), media(2, bytes(8000)))
                await closed(ws)
            assert (await gateway.webhook(b"{"))[0] == 400
            assert (await gateway.webhook(b"{}", {}))[0] == 401
            assert (await gateway.webhook(bytes(300_000)))[0] == 413

    trouble = asyncio.create_task(misbehave())
    try:
        async with gateway.media(healthy) as ws:
            await send(ws, CONNECTED, start(healthy))
            for chunk in range(1, last + 1):
                await send(ws, media(chunk))
                await asyncio.sleep(0)
            await send(ws, STOP)
            assert await closed(ws) == 1000
    finally:
        done.set()
        await trouble
    frames = await frames_of(embedded, healthy)
    assert outline(frames) == ["START", *map(str, range(1, last + 1)), f"END:{last + 1}:stop"]
    assert [frame.payload for frame in frames[1:-1]] == [n.to_bytes(4, "big") * 40 for n in range(1, last + 1)]
    assert gateway.metrics.frames_dropped == gateway.metrics.records_failed == 0


# ---- Kafka down, gateway stopping ----------------------------------------------------------------------------------


async def test_frames_dropped_while_kafka_is_down_are_a_gap_and_the_others_are_stored_in_order() -> None:
    async with EmbeddedBroker() as own:
        connection = own.connection
        await apply(connection, Topics.load(), replication=1)
        call_id = new_call()
        async with running_gateway(connection, records_waiting_max=20) as gateway:
            async with gateway.media(call_id) as ws:
                await send(ws, start(call_id), media(1))
                await records_of(connection, "audio-frames", call_id, lambda records: len(records) == 2)
                await acknowledged(gateway)
                os.kill(own.pid, signal.SIGSTOP)
                try:
                    await send(ws, *map(media, range(2, 42)), STOP)
                    await closed(ws)
                finally:
                    os.kill(own.pid, signal.SIGCONT)
            frames = await frames_of(connection, call_id)
            assert outline(frames) == ["START", *map(str, range(1, 22)), "END:42:stop"]
            assert gateway.metrics.frames_dropped == 20


async def test_a_stopping_gateway_ends_its_streams_and_stores_their_frames(embedded: KafkaConnection) -> None:
    call_id = new_call()
    async with running_gateway(embedded) as gateway:
        ws = await gateway.media(call_id)
        await send(ws, start(call_id), *map(media, range(1, 101)), '{"event":"mark"}')
        await records_of(embedded, "audio-frames", call_id, lambda records: len(records) == 101)
        stopping = asyncio.create_task(closed(ws))
    assert await stopping == 1001
    frames = await frames_of(embedded, call_id)
    assert outline(frames) == ["START", *map(str, range(1, 101)), "END:101:closed: the gateway stops"]


async def test_the_token_gives_the_key_where_the_carrier_names_no_session(
    gateway: Gateway, embedded: KafkaConnection
) -> None:
    call_id = new_call()
    async with gateway.media(call_id) as ws:
        await send(ws, start(call_id, call_session_id=None), media(1), STOP)
        await closed(ws)
    assert outline(await frames_of(embedded, call_id)) == ["START", "1", "END:2:stop"]


async def test_a_call_known_by_its_control_id_keeps_that_key_even_if_start_names_a_session(
    gateway: Gateway, embedded: KafkaConnection
) -> None:
    call_id = new_call()
    leg = control_id(call_id)
    token = stream_tokens.issue(STREAM_SECRET, stream_tokens.Subject(leg, leg), int(time.time()) + 60)
    async with gateway.media(call_id, token=token) as ws:
        await send(ws, start(call_id), media(1), STOP)
        await closed(ws)
    assert outline(await frames_of(embedded, leg)) == ["START", "1", "END:2:stop"]


async def test_without_tokens_the_control_id_is_the_key_where_the_carrier_names_no_session(
    embedded: KafkaConnection,
) -> None:
    call_id = new_call()
    async with (
        running_gateway(embedded, stream_secret=None, verify_webhooks=False) as gateway,
        gateway.media(call_id, token="") as ws,
    ):
        await send(ws, start(call_id, call_session_id=None), media(1), STOP)
        await closed(ws)
    assert outline(await frames_of(embedded, control_id(call_id))) == ["START", "1", "END:2:stop"]
