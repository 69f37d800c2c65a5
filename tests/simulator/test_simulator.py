"""Claims about the simulated carrier: it behaves as Telnyx does, over real HTTP and WebSockets."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatchai.simulator import (
    CallerAudio,
    CallReport,
    Faults,
    HangupCause,
    HangupSource,
    PlacedCall,
    PortTakenError,
    Progress,
    SimulatedAccount,
    SimulatedCarrier,
    Stage,
    Timing,
    WebhookPolicy,
)
from dispatchai.simulator.faults import NO_FAULTS, frame_schedule
from dispatchai.telnyx.commands import (
    AlreadyEnded,
    AlreadyStreaming,
    Answer,
    Done,
    Hangup,
    NotAnswered,
    Rejected,
    Speak,
    StreamingStart,
)
from tests.support.platform import CONFIG, SILENCE, SILENCE_S, Platform

FAST = Timing(speed=200.0)
QUICK = WebhookPolicy(timeout_s=SILENCE_S / 2, first_delay_s=0.005, attempts=4)
CALLER, CALLED = "+15550101001", "+15550100911"


def audio(frames: int, seed: int = 1) -> CallerAudio:
    return CallerAudio("caller.wav", random.Random(seed).randbytes(160 * frames))


@pytest.fixture
def account(tmp_path: Path) -> SimulatedAccount:
    return SimulatedAccount.load_or_create(tmp_path)


@pytest.fixture
async def platform(account: SimulatedAccount) -> AsyncIterator[Platform]:
    async with Platform(account.public_key) as platform:
        yield platform


def carrier_for(platform: Platform, account: SimulatedAccount, **options: Any) -> SimulatedCarrier:
    return SimulatedCarrier(account, 0, platform.url, **{"timing": FAST, "webhooks": QUICK, **options})


async def one_call(
    platform: Platform,
    account: SimulatedAccount,
    caller: CallerAudio,
    observer: Callable[[Progress], None] = lambda progress: None,
    **options: Any,
) -> CallReport:
    async with carrier_for(platform, account, **options) as carrier:
        platform.commands_to(carrier.api_url)
        return await carrier.place_call(caller, CALLER, CALLED, observer).finished()


async def answered(platform: Platform, carrier: SimulatedCarrier, caller: CallerAudio) -> PlacedCall:
    """A call that the platform has answered, without any further command."""
    platform.commands_for = lambda commands: tuple(command for command in commands if isinstance(command, Answer))
    placed = carrier.place_call(caller, CALLER, CALLED)
    await platform.until(lambda: "call.answered" in platform.types())
    return placed


# A whole call


async def test_a_call_has_telnyxs_events_in_their_order(platform: Platform, account: SimulatedAccount) -> None:
    report = await one_call(platform, account, audio(120))
    assert report.failure is None
    assert (report.hangup_cause, report.hangup_source) == (HangupCause.NORMAL_CLEARING, HangupSource.CALLER)
    types = platform.types()
    assert types[:2] == ["call.initiated", "call.answered"]
    assert types[-1] == "call.hangup"
    assert sorted(types[2:-1]) == ["call.speak.ended", "call.speak.started", "streaming.started", "streaming.stopped"]
    assert types.index("call.speak.started") < types.index("call.speak.ended")
    assert types.index("streaming.started") < types.index("streaming.stopped")
    assert all(isinstance(outcome, Done) for _, outcome in platform.outcomes)


async def test_webhooks_are_signed_and_have_telnyxs_fields(platform: Platform, account: SimulatedAccount) -> None:
    report = await one_call(platform, account, audio(10))
    # The platform verifies every signature before it accepts an event; a wrong one would end in 500.
    for webhook in platform.webhooks:
        assert webhook.headers["user-agent"] == "telnyx-webhooks"
        assert webhook.headers["content-type"] == "application/json"
        assert abs(int(webhook.headers["telnyx-timestamp"]) - time.time()) < 60
        assert webhook.body["meta"] == {"attempt": 1, "delivered_to": f"{platform.url}/api/v1/call/incoming"}
        assert webhook.body["data"]["record_type"] == "event"
        assert webhook.payload["call_control_id"] == report.leg.call_control_id
        assert webhook.payload["call_session_id"] == report.leg.call_session_id
    ids = [webhook.body["data"]["id"] for webhook in platform.webhooks]
    assert len(set(ids)) == len(ids)
    initiated = platform.last("call.initiated").payload
    assert initiated["call_control_id"].startswith("v3:")
    assert (initiated["direction"], initiated["state"]) == ("incoming", "parked")
    assert (initiated["from"], initiated["to"]) == (CALLER, CALLED)
    assert initiated["client_state"] is None
    ended = platform.last("call.hangup").payload
    assert (ended["hangup_cause"], ended["hangup_source"], ended["sip_hangup_cause"]) == (
        "normal_clearing",
        "caller",
        "200",
    )
    assert ended["call_quality_stats"]["inbound"]["packet_count"] == "10"


async def test_every_frame_arrives_once_in_order_as_telnyx_writes_it(
    platform: Platform, account: SimulatedAccount
) -> None:
    caller = audio(250)
    report = await one_call(platform, account, caller)
    (socket,) = platform.sockets
    assert socket.kinds == ["connected", "start"] + ["media"] * 250 + ["stop"]
    assert socket.audio == caller.pcmu
    assert socket.token == f"token-{report.leg.call_control_id}"
    connected, start, first = socket.messages[:3]
    assert connected == {
        "event": "connected",
        "version": "1.0.0",
        "connected": {"x-telnyx-streaming-auth-token": socket.token},
    }
    stream_id = start["stream_id"]
    assert start["sequence_number"] == "1"
    assert start["start"]["call_control_id"] == report.leg.call_control_id
    assert start["start"]["media_format"] == {"encoding": "PCMU", "sample_rate": 8000, "channels": 1}
    assert first["sequence_number"] == "2"
    assert {k: first["media"][k] for k in ("track", "chunk", "timestamp")} == {
        "track": "inbound",
        "chunk": "1",
        "timestamp": "0",
    }
    assert [message["media"]["chunk"] for message in socket.media] == [str(n) for n in range(1, 251)]
    assert [message["media"]["timestamp"] for message in socket.media] == [str(20 * n) for n in range(250)]
    assert {message["stream_id"] for message in socket.messages[1:]} == {stream_id}
    stop = socket.messages[-1]
    assert stop["sequence_number"] == "252"
    assert stop["stop"]["call_control_id"] == report.leg.call_control_id


async def test_a_watcher_sees_the_stages_in_order(platform: Platform, account: SimulatedAccount) -> None:
    seen: list[Progress] = []
    await one_call(platform, account, audio(100), seen.append)
    stages = [progress.stage for progress in seen]
    assert stages == [Stage.RINGING, Stage.ANSWERED, *[Stage.STREAMING] * (len(stages) - 3), Stage.ENDED]
    assert [progress.spoken_s for progress in seen if progress.stage is Stage.STREAMING] == [0.0, 1.0, 2.0]
    assert seen[-1].total_s == 2.0


async def test_frames_are_sent_in_real_time_without_drift(platform: Platform, account: SimulatedAccount) -> None:
    began = time.monotonic()
    await one_call(platform, account, audio(50), timing=Timing(speed=4.0))
    assert time.monotonic() - began >= 50 * 0.02 / 4


async def test_many_calls_share_one_carrier_and_stay_separate(platform: Platform, account: SimulatedAccount) -> None:
    threads = threading.active_count()
    async with carrier_for(platform, account, timing=Timing(speed=20.0)) as carrier:
        platform.commands_to(carrier.api_url)
        callers = [audio(60, seed) for seed in range(25)]
        placed = [carrier.place_call(caller, f"+1555010{n:04d}", CALLED) for n, caller in enumerate(callers)]
        reports = await asyncio.gather(*(call.finished() for call in placed))
        assert threading.active_count() == threads
    assert [report.failure for report in reports] == [None] * 25
    heard = {socket.messages[1]["start"]["call_session_id"]: socket.audio for socket in platform.sockets}
    assert heard == {report.leg.call_session_id: caller.pcmu for report, caller in zip(reports, callers, strict=True)}


# Ends


async def test_the_platform_may_hang_up_first(platform: Platform, account: SimulatedAccount) -> None:
    async with carrier_for(platform, account, timing=Timing(speed=10.0)) as carrier:
        platform.commands_to(carrier.api_url)
        placed = carrier.place_call(audio(5000), CALLER, CALLED)

        def hang_up(socket: Any) -> None:
            if len(socket.media) == 20:
                platform.in_background(Hangup(placed.leg.call_control_id, "hangup-1"))

        platform.on_media = hang_up
        report = await placed.finished()
    assert (report.hangup_cause, report.hangup_source) == (HangupCause.NORMAL_CLEARING, HangupSource.CALLEE)
    assert report.failure is None
    assert 20 <= report.frames_sent < 5000
    assert platform.sockets[0].kinds[-1] == "stop"
    assert platform.types()[-1] == "call.hangup"
    assert platform.types().count("streaming.stopped") == 1
    assert platform.last("call.hangup").payload["hangup_source"] == "callee"


async def test_a_hangup_interrupts_speech_to_the_caller(platform: Platform, account: SimulatedAccount) -> None:
    async with carrier_for(platform, account, timing=Timing(speed=1.0)) as carrier:
        client = platform.commands_to(carrier.api_url)
        placed = await answered(platform, carrier, audio(1))
        control = placed.leg.call_control_id
        assert isinstance(await client.run(Speak(control, "s", "word " * 500, "female", "en-US")), Done)
        await platform.until(lambda: "call.speak.started" in platform.types())
        placed.hang_up()
        await placed.finished()
    assert platform.last("call.speak.ended").payload["status"] == "call_hangup"
    assert platform.types()[-1] == "call.hangup"


async def test_a_call_may_be_refused_before_it_is_answered(platform: Platform, account: SimulatedAccount) -> None:
    platform.commands_for = lambda commands: tuple(Hangup(c.call_control_id, "no") for c in commands)
    report = await one_call(platform, account, audio(10))
    assert report.hangup_cause is HangupCause.CALL_REJECTED
    assert report.failure == "the platform hung up before it listened"
    assert platform.types() == ["call.initiated", "call.hangup"]


async def test_closing_the_carrier_hangs_up_its_calls(platform: Platform, account: SimulatedAccount) -> None:
    async with carrier_for(platform, account, timing=Timing(speed=1.0)) as carrier:
        platform.commands_to(carrier.api_url)
        placed = carrier.place_call(audio(5000), CALLER, CALLED)
        await platform.until(lambda: platform.has_heard(1))
    assert (await placed.finished()).hangup_source is HangupSource.CALLER
    assert platform.types()[-1] == "call.hangup"


# Failures


async def test_a_call_without_an_answer_says_what_is_missing(platform: Platform, account: SimulatedAccount) -> None:
    platform.commands_for = lambda commands: ()
    report = await one_call(platform, account, audio(10), timing=Timing(answer_s=0.05))
    assert report.failure == (
        "the gateway answered 200 but no `answer` command came within 0.05 s: is the worker running?"
    )
    assert report.hangup_cause is HangupCause.ORIGINATOR_CANCEL
    assert platform.last("call.hangup").payload["sip_hangup_cause"] == "487"


async def test_a_call_without_a_stream_says_what_is_missing(platform: Platform, account: SimulatedAccount) -> None:
    platform.commands_for = lambda commands: tuple(command for command in commands if isinstance(command, Answer))
    report = await one_call(platform, account, audio(10), timing=Timing(stream_s=0.05))
    assert report.failure == "the call was answered but no `streaming_start` command came within 0.05 s"


async def test_a_refused_socket_is_a_failed_stream(platform: Platform, account: SimulatedAccount) -> None:
    platform.refuse_socket.extend([403] * (1 + CONFIG.stream_restarts_max))
    report = await one_call(platform, account, audio(10), timing=Timing(stream_s=0.2))
    assert report.failure == "the media socket refused the handshake with 403"
    failed = platform.last("streaming.failed").payload
    assert failed["failure_reason"] == "connection_failed"
    assert failed["stream_params"]["stream_url"].endswith("/ws")


async def test_a_refused_signature_is_explained_and_not_retried(platform: Platform, account: SimulatedAccount) -> None:
    platform.replies.extend([401, 401])
    report = await one_call(platform, account, audio(10))
    assert report.failure is not None and "refused the signature" in report.failure
    assert [webhook.type for webhook in platform.webhooks] == ["call.initiated", "call.hangup"]


async def test_a_missing_gateway_is_explained(account: SimulatedAccount) -> None:
    async with Platform(account.public_key) as gone:
        url = gone.url
    async with SimulatedCarrier(account, 0, url, timing=FAST, webhooks=QUICK) as carrier:
        report = await carrier.place_call(audio(10), CALLER, CALLED).finished()
    assert report.failure is not None
    assert report.failure.startswith("the gateway cannot be reached")
    assert report.undelivered == ("call.initiated", "call.hangup")


# Retries of webhooks


@pytest.mark.parametrize("status", [408, 429, 500, 503, SILENCE])
async def test_a_webhook_is_retried_with_the_same_id_and_a_rising_attempt(
    platform: Platform, account: SimulatedAccount, status: int
) -> None:
    platform.replies.extend([status, status])
    report = await one_call(platform, account, audio(10))
    assert report.failure is None
    tries = [webhook for webhook in platform.webhooks if webhook.type == "call.initiated"]
    assert [webhook.status for webhook in tries] == [status, status, 200]
    assert [webhook.body["meta"]["attempt"] for webhook in tries] == [1, 2, 3]
    assert len({webhook.body["data"]["id"] for webhook in tries}) == 1
    assert len({webhook.body["data"]["occurred_at"] for webhook in tries}) == 1


async def test_an_event_that_was_given_up_is_reported(platform: Platform, account: SimulatedAccount) -> None:
    platform.commands_for = lambda commands: tuple(c for c in commands if not isinstance(c, Speak))

    def refuse_the_rest(socket: Any) -> None:
        platform.replies.extend([400] * 20)
        platform.on_media = lambda _: None

    platform.on_media = refuse_the_rest
    report = await one_call(platform, account, audio(20))
    assert report.undelivered[-1] == "call.hangup"
    assert report.failure is not None and "call.hangup" in report.failure
    assert not report.completed


# Commands


async def command(
    carrier: SimulatedCarrier, control_id: str, action: str, body: Any, key: str = "KEY-simulated"
) -> tuple[int, dict[str, Any]]:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with (
        aiohttp.ClientSession() as http,
        http.post(
            f"{carrier.api_url}/calls/{control_id}/actions/{action}",
            data=content,
            headers={"Authorization": f"Bearer {key}"},
        ) as reply,
    ):
        return reply.status, await reply.json()


async def test_commands_are_refused_in_the_wrong_state(platform: Platform, account: SimulatedAccount) -> None:
    platform.commands_for = lambda commands: ()
    async with carrier_for(platform, account) as carrier:
        client = platform.commands_to(carrier.api_url)
        placed = carrier.place_call(audio(500), CALLER, CALLED)
        control, url = placed.leg.call_control_id, f"ws{platform.url[4:]}/ws"
        speak, stream = Speak(control, "1", "Hello", "female", "en-US"), StreamingStart(control, "2", url)
        assert await client.run(speak) == NotAnswered()
        assert await client.run(stream) == NotAnswered()
        assert await client.run(Answer(control, "3")) == Done(1)
        assert isinstance(await client.run(Answer(control, "4")), Rejected)
        assert await client.run(stream) == Done(1)
        assert await client.run(StreamingStart(control, "5", url)) == AlreadyStreaming()
        assert await client.run(Hangup(control, "6")) == Done(1)
        assert await client.run(Hangup(control, "7")) == AlreadyEnded()
        await placed.finished()
        assert await client.run(Hangup(control, "8")) == AlreadyEnded()
        assert await client.run(Hangup("v3:unknown", "9")) == Rejected(404, "10005", "Resource not found")


async def test_a_command_id_is_obeyed_once(platform: Platform, account: SimulatedAccount) -> None:
    async with carrier_for(platform, account) as carrier:
        client = platform.commands_to(carrier.api_url)
        placed = await answered(platform, carrier, audio(500))
        control = placed.leg.call_control_id
        speak = Speak(control, "once", "Hello", "female", "en-US")
        assert [await client.run(speak) for _ in range(3)] == [Done(1)] * 3
        assert await client.run(Speak(control, "twice", "Hello", "female", "en-US")) == Done(1)
        await platform.until(lambda: platform.types().count("call.speak.ended") == 2)
        assert [await client.run(Hangup(control, "end")) for _ in range(2)] == [Done(1)] * 2
        await placed.finished()
    assert platform.types().count("call.speak.started") == 2
    assert platform.types().count("call.hangup") == 1


@pytest.mark.parametrize(
    ("action", "body", "status", "code"),
    [
        (
            "streaming_start",
            {"stream_url": "wss://h/ws", "audio": {"direction": "inbound", "format": "pcm16", "sample_rate": 8000}},
            422,
            "10015",
        ),
        ("streaming_start", {}, 422, "10004"),
        ("streaming_start", {"stream_url": None}, 422, "10004"),
        ("streaming_start", {"stream_url": "https://h/ws"}, 422, "10015"),
        ("streaming_start", {"stream_url": "wss://h/ws", "stream_track": "inbound"}, 422, "10015"),
        ("streaming_start", {"stream_url": "wss://h/ws", "stream_auth_token": "x" * 4001}, 422, "10015"),
        ("streaming_start", {"stream_url": "wss://h/ws", "custom_parameters": {"a": "b"}}, 422, "10015"),
        ("speak", {"payload": "Hello", "voice": "female", "overlay": False}, 422, "10015"),
        ("speak", {"payload": "Hello"}, 422, "10004"),
        ("speak", {"payload": "", "voice": "female"}, 422, "90010"),
        ("speak", {"payload": "Hello", "voice": 1}, 422, "90012"),
        ("speak", {"payload": "Hello", "voice": "female", "language": 7}, 422, "90013"),
        ("answer", {"client_state": "not base64!"}, 422, "90017"),
        ("hangup", {"client_state": "aGk"}, 422, "90017"),
        ("answer", [], 422, "10015"),
        ("answer", b"{", 400, "10015"),
        ("dance", {}, 404, "10005"),
    ],
)
async def test_bad_parameters_get_telnyxs_errors(
    platform: Platform, account: SimulatedAccount, action: str, body: Any, status: int, code: str
) -> None:
    platform.commands_for = lambda commands: ()
    async with carrier_for(platform, account) as carrier:
        placed = carrier.place_call(audio(1), CALLER, CALLED)
        got, reply = await command(carrier, placed.leg.call_control_id, action, body)
        assert (got, reply["errors"][0]["code"]) == (status, code)
        assert reply["errors"][0].keys() == {"code", "title", "detail"}


async def test_a_wrong_key_is_refused(platform: Platform, account: SimulatedAccount) -> None:
    platform.commands_for = lambda commands: ()
    async with carrier_for(platform, account) as carrier:
        placed = carrier.place_call(audio(1), CALLER, CALLED)
        for key in ("", "KEY-other", "ключ"):
            status, reply = await command(carrier, placed.leg.call_control_id, "answer", {}, key)
            assert (status, reply["errors"][0]["code"]) == (401, "10009")
    assert "call.answered" not in platform.types()


async def test_client_state_is_echoed_in_events_and_stream(platform: Platform, account: SimulatedAccount) -> None:
    platform.commands_for = lambda commands: ()
    async with carrier_for(platform, account) as carrier:
        platform.commands_to(carrier.api_url)
        placed = carrier.place_call(audio(5), CALLER, CALLED)
        body = {"client_state": "aGVsbG8=", "stream_url": f"ws{platform.url[4:]}/ws", "command_id": "a"}
        assert await command(carrier, placed.leg.call_control_id, "answer", body) == (200, {"data": {"result": "ok"}})
        await placed.finished()
    assert platform.last("call.initiated").payload["client_state"] is None
    assert platform.last("call.answered").payload["client_state"] == "aGVsbG8="
    assert platform.sockets[0].messages[1]["start"]["client_state"] == "aGVsbG8="
    assert platform.sockets[0].messages[0] == {"event": "connected", "version": "1.0.0"}


async def test_a_stream_may_be_stopped_and_started_again(platform: Platform, account: SimulatedAccount) -> None:
    caller = audio(400)
    async with carrier_for(platform, account, timing=Timing(speed=5.0)) as carrier:
        client = platform.commands_to(carrier.api_url)
        placed = await answered(platform, carrier, caller)
        control, url = placed.leg.call_control_id, f"ws{platform.url[4:]}/ws"
        status, reply = await command(carrier, control, "streaming_stop", {})
        assert (status, reply["errors"][0]["code"]) == (422, "90048")
        assert await client.run(StreamingStart(control, "1", url)) == Done(1)
        await platform.until(lambda: platform.has_heard(10))
        assert (await command(carrier, control, "streaming_stop", {"command_id": "2"}))[0] == 200
        await platform.until(lambda: "streaming.stopped" in platform.types())
        assert await client.run(StreamingStart(control, "3", url)) == Done(1)
        report = await placed.finished()
    first, second = platform.sockets
    assert len(report.streams) == 2
    assert first.messages[1]["stream_id"] != second.messages[1]["stream_id"]
    assert caller.pcmu.startswith(first.audio)
    assert caller.pcmu.endswith(second.audio)
    assert second.media[0]["media"]["chunk"] == "1"
    assert [socket.kinds[-1] for socket in (first, second)] == ["stop", "stop"]


async def test_the_caller_speaks_on_when_the_platform_closes_the_socket(
    platform: Platform, account: SimulatedAccount
) -> None:
    platform.close_after = 30
    report = await one_call(platform, account, audio(100), timing=Timing(speed=20.0))
    assert report.failure is None
    assert 28 <= report.frames_sent < 100
    assert "stop" not in platform.sockets[0].kinds
    assert platform.types()[-1] == "call.hangup"
    assert platform.types().count("streaming.stopped") == 1


# Faults


async def test_a_seed_gives_the_same_faults_each_time(platform: Platform, account: SimulatedAccount) -> None:
    faults = Faults(seed=7, frame_duplicates=0.05, frame_swaps=0.05, frame_losses=0.05)
    caller = audio(300)
    await one_call(platform, account, caller, faults=faults)
    await one_call(platform, account, caller, faults=faults)
    chunks = [[int(m["media"]["chunk"]) for m in socket.media] for socket in platform.sockets]
    assert chunks[0] == chunks[1]
    assert len(set(chunks[0])) < 300
    assert len(chunks[0]) > len(set(chunks[0]))
    assert chunks[0] != sorted(chunks[0])
    assert all(int(m["sequence_number"]) == int(m["media"]["chunk"]) + 1 for m in platform.sockets[0].media)


async def test_a_stream_may_end_without_stop(platform: Platform, account: SimulatedAccount) -> None:
    await one_call(platform, account, audio(10), faults=Faults(missing_stop=True))
    assert platform.sockets[0].kinds == ["connected", "start"] + ["media"] * 10


async def test_a_socket_may_be_cut(platform: Platform, account: SimulatedAccount) -> None:
    report = await one_call(platform, account, audio(60), faults=Faults(cut_after_frames=25))
    assert report.streams[0].messages == 25
    assert platform.sockets[0].kinds == ["connected", "start"] + ["media"] * 25
    assert platform.sockets[0].close_code == 1006
    assert platform.types()[-1] == "call.hangup"


@given(
    count=st.integers(0, 60),
    seed=st.integers(0, 1000),
    twice=st.floats(0, 1),
    later=st.floats(0, 1),
)
def test_without_loss_every_frame_is_sent_at_most_one_moment_late(
    count: int, seed: int, twice: float, later: float
) -> None:
    faults = Faults(seed=seed, frame_duplicates=twice, frame_swaps=later)
    plan = list(frame_schedule(count, faults, faults.rng(0, "frames")))
    assert len(plan) == count
    assert {frame for frames in plan for frame in frames} == set(range(count))
    assert all(moment - frame in (0, 1) for moment, frames in enumerate(plan) for frame in frames)


def test_without_faults_each_frame_is_sent_at_its_moment() -> None:
    assert list(frame_schedule(5, NO_FAULTS, NO_FAULTS.rng(0, "frames"))) == [(0,), (1,), (2,), (3,), (4,)]


def test_a_rate_that_is_no_probability_is_refused() -> None:
    with pytest.raises(ValueError, match="frame_losses"):
        Faults(frame_losses=1.5)


# The port


async def test_a_taken_port_is_explained(platform: Platform, account: SimulatedAccount) -> None:
    async with carrier_for(platform, account) as first:
        with pytest.raises(PortTakenError, match="another `dispatchai call` is running"):
            async with SimulatedCarrier(account, first.port, platform.url):
                pass
