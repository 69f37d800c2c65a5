"""Claims about the simulated carrier's faults: each happens as its name says, and the report describes it."""

from __future__ import annotations

import asyncio
import re
from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from dispatchai.audio.g711 import ALAW, MULAW
from dispatchai.cli.main import main
from dispatchai.simulator import (
    Codec,
    FaultError,
    Faults,
    HangupCause,
    SignatureFault,
    SimulatedAccount,
    SimulatedCarrier,
    StreamEnd,
    Timing,
    TokenFault,
    catalogue,
)
from dispatchai.telnyx.commands import Answer, Done, Speak, StreamingStart
from tests.simulator.test_simulator import CALLED, CALLER, audio, carrier_for, command, one_call
from tests.support.paths import DOCS
from tests.support.platform import Platform, Socket

PAGE = DOCS / "simulated-carrier.md"


@pytest.fixture
def account(tmp_path: Path) -> SimulatedAccount:
    return SimulatedAccount.load_or_create(tmp_path)


@pytest.fixture
async def platform(account: SimulatedAccount) -> AsyncIterator[Platform]:
    async with Platform(account.public_key) as platform:
        yield platform


def chunks(socket: Socket, track: str = "inbound") -> list[int]:
    return [int(m["media"]["chunk"]) for m in socket.media if m["media"]["track"] == track]


def can_be_decoded(message: dict[str, Any]) -> bool:
    try:
        b64decode(message["media"]["payload"], validate=True)
    except Base64Error:
        return False
    return True


# Names


def test_every_fault_can_be_named_with_and_without_a_value() -> None:
    for name, unit, _ in catalogue():
        bare = ["reconnects=3", name] if name == "cut-reconnects" else [name]
        field = name.replace("-", "_")
        assert getattr(Faults.parse(bare), field) != getattr(Faults(), field), name
        value = {"0..1": "0.5", "s": "1.5", "": ""}.get(unit, unit.rpartition("|")[2] if "|" in unit else "7")
        if value:
            given = [f"{name}={value}"]
            if name == "cut-reconnects":
                given.append("reconnects=9")
            assert str(getattr(Faults.parse(given), field)) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rain", "there is no fault 'rain': frame-duplicates"),
        ("seed=3", "there is no fault 'seed'"),
        ("frame-losses=2", "frame_losses is a probability: 0 to 1"),
        ("frame-losses=nan", "frame_losses is a probability"),
        ("frame-losses=many", r"frame_losses=many: give 0\.\.1"),
        ("media-stall-s=-1", "media_stall_s is a time"),
        ("media-stall-s=nan", "media_stall_s is a time"),
        ("early-media=-1", "early_media is a number"),
        ("frame-ms=0", "frame_ms is a frame's length"),
        ("codec=MP3", "codec=MP3: give PCMU|PCMA"),
        ("missing-stop=yes", "missing_stop takes no value"),
        ("cut-reconnects=1", "cut_reconnects are some of the reconnects"),
    ],
)
def test_an_invalid_fault_is_explained(text: str, message: str) -> None:
    with pytest.raises(FaultError, match=message.replace("|", r"\|")):
        Faults.parse([text])


def test_the_command_line_names_every_fault_and_refuses_others() -> None:
    shown = CliRunner().invoke(main, ["call", "--help"]).output
    assert [name for name, _, _ in catalogue() if name not in shown] == []
    refused = CliRunner().invoke(main, ["call", "a.wav", "--fault", "rain"])
    assert refused.exit_code == 2
    assert "there is no fault 'rain'" in refused.output


def test_the_page_describes_every_fault_and_no_other() -> None:
    described = re.findall(r"^\| `([a-z0-9-]+).*?` \| (.*) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert described == [(name, text) for name, _, text in catalogue()]


# Frames


async def test_the_report_names_exactly_the_chunks_that_never_arrived(
    platform: Platform, account: SimulatedAccount
) -> None:
    faults = Faults(seed=3, frame_duplicates=0.1, frame_swaps=0.1, frame_losses=0.1, frame_damages=0.1, garbage=0.1)
    report = await one_call(platform, account, audio(300), faults=faults)
    (socket,), (stream,) = platform.sockets, report.streams
    heard = {int(m["media"]["chunk"]) for m in socket.media if can_be_decoded(m)}
    assert len(stream.lost) > 30
    assert set(stream.lost) == set(range(1, stream.chunks + 1)) - heard
    assert stream.chunks == max(chunks(socket))
    assert stream.messages == report.frames_sent == len(socket.media)
    assert stream.stream_id == socket.messages[1]["stream_id"]
    assert stream.end is StreamEnd.STOPPED
    assert socket.broken > 10
    assert any(not can_be_decoded(m) for m in socket.media)


@given(seed=st.integers(0, 10_000), number=st.integers(0, 300))
def test_a_seed_affects_the_same_events_and_commands_each_time_and_others_in_each_call(seed: int, number: int) -> None:
    faults = Faults(seed=seed, webhook_duplicates=0.5, webhook_delay_s=1, command_failures=0.3, command_timeouts=0.3)
    fates = [
        (faults.webhook_fate(faults.rng(call, f"event {n}")), faults.command_fate(faults.rng(call, f"command {n}")))
        for call in (number, number, number + 1)
        for n in range(12)
    ]
    assert fates[:12] == fates[12:24]
    assert fates[:12] != fates[24:]


async def test_after_a_stall_every_frame_arrives_in_order(platform: Platform, account: SimulatedAccount) -> None:
    caller = audio(100)
    report = await one_call(platform, account, caller, timing=Timing(speed=20.0), faults=Faults(media_stall_s=2.0))
    assert platform.sockets[0].audio == caller.pcmu
    assert report.streams[0].lost == ()


async def test_a_huge_message_has_the_requested_size(platform: Platform, account: SimulatedAccount) -> None:
    await one_call(platform, account, audio(20), faults=Faults(huge_message=200_000))
    (mark,) = [message for message in platform.sockets[0].messages if message["event"] == "mark"]
    assert len(mark["mark"]["name"]) + len('{"event":"mark","mark":{"name":""}}') == 200_000


# Streams


@pytest.mark.parametrize(
    ("codec", "encoding", "rate", "bytes_per_frame"),
    [
        (Codec.PCMU, "PCMU", 8000, 160),
        (Codec.PCMA, "PCMA", 8000, 160),
        (Codec.L16, "L16", 8000, 320),
        (Codec.L16_BE, "L16", 8000, 320),
        (Codec.G722, "G722", 8000, 160),
        (Codec.AMR_WB, "AMR-WB", 16_000, 33),
        (Codec.OPUS, "OPUS", 16_000, 60),
    ],
)
async def test_a_leg_may_have_another_codec(
    platform: Platform, account: SimulatedAccount, codec: Codec, encoding: str, rate: int, bytes_per_frame: int
) -> None:
    caller = audio(20)
    await one_call(platform, account, caller, faults=Faults(codec=codec))
    socket = platform.sockets[0]
    assert socket.messages[1]["start"]["media_format"] == {"encoding": encoding, "sample_rate": rate, "channels": 1}
    assert {len(b64decode(m["media"]["payload"])) for m in socket.media} == {bytes_per_frame}
    assert platform.last("call.answered").payload["codec"] == encoding
    said = MULAW[np.frombuffer(caller.pcmu, np.uint8)]
    match codec:
        case Codec.PCMU:
            assert socket.audio == caller.pcmu
        case Codec.PCMA:  # its steps are 1/16 of a sample's value, 16 for the smallest
            error = np.abs(ALAW[np.frombuffer(socket.audio, np.uint8)].astype(int) - said)
            assert (error <= np.maximum(np.abs(said.astype(int)) / 16, 16)).all()
        case Codec.L16 | Codec.L16_BE:
            order = "<i2" if codec is Codec.L16 else ">i2"
            assert (np.frombuffer(socket.audio, order) == said).all()


@pytest.mark.parametrize("frame_ms", [10, 20, 30, 60, 99])
async def test_frames_of_other_lengths_carry_the_same_audio(
    platform: Platform, account: SimulatedAccount, frame_ms: int
) -> None:
    caller = audio(50)
    report = await one_call(platform, account, caller, faults=Faults(frame_ms=frame_ms))
    socket = platform.sockets[0]
    assert socket.audio.startswith(caller.pcmu)
    assert set(socket.audio[len(caller.pcmu) :]) <= {0xFF}
    assert {len(b64decode(m["media"]["payload"])) for m in socket.media} == {8 * frame_ms}
    assert [int(m["media"]["timestamp"]) for m in socket.media] == [n * frame_ms for n in range(len(socket.media))]
    assert report.frames_sent == -(-1000 // frame_ms)


async def test_start_may_omit_the_codec(platform: Platform, account: SimulatedAccount) -> None:
    await one_call(platform, account, audio(5), faults=Faults(missing_media_format=True))
    assert "media_format" not in platform.sockets[0].messages[1]["start"]


async def test_frames_before_start_and_without_start_count_as_lost(
    platform: Platform, account: SimulatedAccount
) -> None:
    report = await one_call(platform, account, audio(10), faults=Faults(early_media=3))
    assert platform.sockets[0].kinds == ["connected", "media", "media", "media", "start", *["media"] * 7, "stop"]
    assert report.streams[0].lost == (1, 2, 3)
    report = await one_call(platform, account, audio(10), faults=Faults(missing_start=True))
    assert platform.sockets[1].kinds == ["connected", *["media"] * 10, "stop"]
    assert report.streams[0].lost == tuple(range(1, 11))


async def test_both_tracks_are_named_and_counted_separately(platform: Platform, account: SimulatedAccount) -> None:
    caller = audio(10)
    await one_call(platform, account, caller, faults=Faults(both_tracks=True))
    socket = platform.sockets[0]
    assert chunks(socket, "inbound") == chunks(socket, "outbound") == list(range(1, 11))
    numbers = [int(message["sequence_number"]) for message in socket.messages[1:]]
    assert numbers == list(range(1, len(numbers) + 1))


@pytest.mark.parametrize("track", ["outbound_track", "both_tracks"])
async def test_the_requested_track_is_streamed(platform: Platform, account: SimulatedAccount, track: str) -> None:
    platform.commands_for = lambda commands: ()
    async with carrier_for(platform, account) as carrier:
        placed = carrier.place_call(audio(5), CALLER, CALLED)
        body = {"stream_url": f"ws{platform.url[4:]}/ws", "stream_track": track}
        await command(carrier, placed.leg.call_control_id, "answer", body)
        await placed.finished()
    assert chunks(platform.sockets[0], "outbound") == [1, 2, 3, 4, 5]
    assert chunks(platform.sockets[0], "inbound") == ([1, 2, 3, 4, 5] if track == "both_tracks" else [])


@pytest.mark.parametrize(
    ("fault", "token"), [(TokenFault.ABSENT, None), (TokenFault.WRONG, "not-the-token"), (TokenFault.RIGHT, "token-v3")]
)
async def test_the_handshake_has_the_token_of_the_fault(
    platform: Platform, account: SimulatedAccount, fault: TokenFault, token: str | None
) -> None:
    await one_call(platform, account, audio(5), faults=Faults(token=fault))
    got = platform.sockets[0].token
    assert got == token or (token is not None and got is not None and got.startswith(token))


async def test_a_stream_may_name_another_call(platform: Platform, account: SimulatedAccount) -> None:
    async with carrier_for(platform, account, timing=Timing(speed=5.0)) as carrier:
        platform.commands_to(carrier.api_url)
        honest = carrier.place_call(audio(100), CALLER, CALLED)
        await platform.until(lambda: platform.has_heard(1))
        liar = carrier.place_call(audio(10), CALLER, CALLED, faults=Faults(token=TokenFault.OTHER_CALL))
        await asyncio.gather(honest.finished(), liar.finished())
    lying = platform.sockets[1]
    assert lying.token == f"token-{liar.leg.call_control_id}"
    assert lying.messages[1]["start"]["call_control_id"] == honest.leg.call_control_id


async def test_failed_streams_come_before_one_that_opens(platform: Platform, account: SimulatedAccount) -> None:
    faults = Faults(stream_failures=2)
    async with carrier_for(platform, account, faults=faults, timing=Timing(stream_s=5.0, speed=50.0)) as carrier:
        client = platform.commands_to(carrier.api_url)
        platform.commands_for = lambda commands: tuple(c for c in commands if isinstance(c, Answer))
        placed = carrier.place_call(audio(10), CALLER, CALLED)
        await platform.until(lambda: "call.answered" in platform.types())

        async def start_a_stream(command_id: str, failures: int) -> None:
            start = StreamingStart(placed.leg.call_control_id, command_id, f"ws{platform.url[4:]}/ws")
            assert await client.run(start) == Done(1)
            await platform.until(lambda: platform.types().count("streaming.failed") == failures)

        for attempt, failures in enumerate((1, 2, 2)):
            await start_a_stream(str(attempt), failures)
        report = await placed.finished()
    assert report.failure is None
    assert len(platform.sockets) == len(report.streams) == 1


async def test_after_a_reconnect_the_caller_goes_on_in_a_new_stream(
    platform: Platform, account: SimulatedAccount
) -> None:
    caller = audio(400)
    faults = Faults(reconnects=3, cut_reconnects=1, reconnect_pause_s=0.2)
    report = await one_call(platform, account, caller, timing=Timing(speed=20.0), faults=faults)
    assert report.failure is None
    assert [stream.end for stream in report.streams] == [
        StreamEnd.CUT,
        StreamEnd.STOPPED,
        StreamEnd.STOPPED,
        StreamEnd.STOPPED,
    ]
    assert ["stop" in socket.kinds for socket in platform.sockets] == [False, True, True, True]
    assert platform.sockets[0].close_code == 1006
    assert len({stream.stream_id for stream in report.streams}) == 4
    assert len({socket.token for socket in platform.sockets}) == 1
    for stream, socket in zip(report.streams, platform.sockets, strict=True):
        assert chunks(socket) == list(range(1, stream.chunks + 1))
        first = stream.first_frame * 160
        assert socket.audio == caller.pcmu[first : first + stream.chunks * 160]
    for before, after in zip(report.streams, report.streams[1:], strict=False):
        missed = after.first_frame - (before.first_frame + before.chunks)
        assert missed >= 10, "words spoken in the pause are not repeated"
    assert platform.types().count("streaming.started") == platform.types().count("streaming.stopped") == 1


async def test_a_cut_without_a_reconnect_is_a_failed_stream(platform: Platform, account: SimulatedAccount) -> None:
    report = await one_call(platform, account, audio(60), faults=Faults(cut_after_frames=25))
    assert report.streams[0].end is StreamEnd.CUT
    failed = platform.last("streaming.failed").payload
    assert failed["stream_id"] == report.streams[0].stream_id


# Webhooks


async def test_events_are_duplicated_lost_left_unanswered_and_reordered(
    platform: Platform, account: SimulatedAccount
) -> None:
    for faults in (Faults(webhook_duplicates=1.0), Faults(webhook_retries=1.0), Faults(webhook_losses=1.0)):
        platform.webhooks.clear()
        report = await one_call(platform, account, audio(20), faults=faults)
        assert report.failure is None
        attempts: dict[str, list[int]] = {}
        for webhook in platform.webhooks:
            attempts.setdefault(webhook.body["data"]["id"], []).append(webhook.body["meta"]["attempt"])
        expected = [1, 1] if faults.webhook_duplicates else [1, 2] if faults.webhook_retries else [2]
        assert all(each == expected for each in attempts.values())
        assert report.webhook_answers_s and min(report.webhook_answers_s) > 0
    platform.webhooks.clear()
    assert (await one_call(platform, account, audio(20), faults=Faults(webhook_delay_s=0.1))).failure is None
    times = [webhook.body["data"]["occurred_at"] for webhook in platform.webhooks]
    assert times != sorted(times)


async def test_the_hangup_may_come_before_the_answer(platform: Platform, account: SimulatedAccount) -> None:
    report = await one_call(platform, account, audio(20), faults=Faults(hangup_before_answered=True))
    assert report.failure is None
    assert report.hangup_cause is HangupCause.NORMAL_CLEARING
    assert platform.types() == ["call.initiated", "call.hangup", "call.answered"]
    answered, hangup = (platform.last(kind).body["data"]["occurred_at"] for kind in ("call.answered", "call.hangup"))
    assert answered < hangup


@pytest.mark.parametrize("signature", [fault for fault in SignatureFault if fault is not SignatureFault.RIGHT])
async def test_a_bad_signature_fails_verification(
    platform: Platform, account: SimulatedAccount, signature: SignatureFault
) -> None:
    report = await one_call(platform, account, audio(5), faults=Faults(signature=signature))
    assert report.failure is not None and "refused the signature" in report.failure
    assert {webhook.status for webhook in platform.webhooks} == {401}


async def test_the_carriers_clock_may_be_wrong(platform: Platform, account: SimulatedAccount) -> None:
    await one_call(platform, account, audio(5))
    right = platform.last("call.hangup")
    await one_call(platform, account, audio(5), faults=Faults(clock_skew_s=200.0))
    wrong = platform.last("call.hangup")
    assert int(wrong.headers["telnyx-timestamp"]) - int(right.headers["telnyx-timestamp"]) >= 199
    assert wrong.status == 200
    await one_call(platform, account, audio(5), faults=Faults(clock_skew_s=-400.0))
    assert platform.last("call.hangup").status == 401


async def test_a_delivery_that_pauses_in_its_body_arrives_completely(
    platform: Platform, account: SimulatedAccount
) -> None:
    report = await one_call(platform, account, audio(5), faults=Faults(webhook_stall_s=0.02))
    assert report.failure is None
    assert min(report.webhook_answers_s) >= 0.02


# Commands


@pytest.mark.parametrize("faults", [Faults(command_failures=1.0), Faults(command_lost_answers=1.0)])
async def test_a_command_that_fails_once_takes_effect_once(
    platform: Platform, account: SimulatedAccount, faults: Faults
) -> None:
    report = await one_call(platform, account, audio(50), faults=faults)
    assert report.failure is None
    assert {command.action for command in report.commands} == {"answer", "streaming_start", "speak"}
    assert [(command.requests, command.effects) for command in report.commands] == [(2, 1)] * 3
    assert platform.types().count("call.speak.started") == 1
    assert len(platform.sockets) == 1


async def test_a_rate_limited_command_is_told_when_to_retry(platform: Platform, account: SimulatedAccount) -> None:
    platform.commands_for = lambda commands: ()
    async with carrier_for(platform, account, faults=Faults(command_limits=1.0)) as carrier:
        placed = carrier.place_call(audio(5), CALLER, CALLED)
        url = f"{carrier.api_url}/calls/{placed.leg.call_control_id}/actions/answer"
        key = {"Authorization": "Bearer KEY-simulated"}
        async with aiohttp.ClientSession(headers=key) as http:
            async with http.post(url, json={"command_id": "a"}) as reply:
                assert (reply.status, (await reply.json())["errors"][0]["code"]) == (429, "10011")
                assert {name for name in map(str.lower, reply.headers) if name.startswith("x-ratelimit")} == {
                    "x-ratelimit-limit",
                    "x-ratelimit-remaining",
                    "x-ratelimit-reset",
                }
            async with http.post(url, json={"command_id": "a"}) as reply:
                assert reply.status == 200


async def test_a_command_that_times_out_has_no_effect(platform: Platform, account: SimulatedAccount) -> None:
    platform.commands_for = lambda commands: ()
    async with carrier_for(platform, account, faults=Faults(command_timeouts=1.0)) as carrier:
        placed = carrier.place_call(audio(5), CALLER, CALLED)
        url = f"{carrier.api_url}/calls/{placed.leg.call_control_id}/actions/answer"
        headers = {"Authorization": "Bearer KEY-simulated"}
        async with aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(total=0.1)) as http:
            with pytest.raises(TimeoutError):
                await http.post(url, json={"command_id": "a"})
        assert "call.answered" not in platform.types()
        assert (await command(carrier, placed.leg.call_control_id, "answer", {"command_id": "a"}))[0] == 200
        placed.hang_up()
        report = await placed.finished()
    assert [(each.requests, each.effects) for each in report.commands] == [(2, 1)]


async def test_slow_answers_are_accepted(platform: Platform, account: SimulatedAccount) -> None:
    report = await one_call(platform, account, audio(20), faults=Faults(command_delay_s=0.05))
    assert report.failure is None
    assert all(isinstance(outcome, Done) for _, outcome in platform.outcomes)


async def answered_call(platform: Platform, carrier: SimulatedCarrier) -> Any:
    platform.commands_for = lambda commands: tuple(c for c in commands if isinstance(c, Answer))
    placed = carrier.place_call(audio(2000), CALLER, CALLED)
    await platform.until(lambda: "call.answered" in platform.types())
    return placed


async def test_a_transferred_caller_is_bridged(platform: Platform, account: SimulatedAccount) -> None:
    async with carrier_for(platform, account) as carrier:
        platform.commands_to(carrier.api_url)
        placed = await answered_call(platform, carrier)
        control = placed.leg.call_control_id
        assert (await command(carrier, control, "transfer", {}))[1]["errors"][0]["code"] == "10004"
        assert (await command(carrier, control, "transfer", {"to": "+15550100999"}))[0] == 200
        await platform.until(lambda: "call.bridged" in platform.types())
    assert platform.last("call.bridged").payload["to"] == "+15550100999"


async def test_recordings_are_saved_when_stopped_or_when_the_call_ends(
    platform: Platform, account: SimulatedAccount
) -> None:
    async with carrier_for(platform, account) as carrier:
        platform.commands_to(carrier.api_url)
        placed = await answered_call(platform, carrier)
        control, wanted = placed.leg.call_control_id, {"channels": "dual", "format": "mp3"}
        assert (await command(carrier, control, "record_start", {"channels": "dual"}))[0] == 422
        assert (await command(carrier, control, "record_start", wanted))[0] == 200
        assert (await command(carrier, control, "record_stop", {}))[0] == 200
        await platform.until(lambda: "call.recording.saved" in platform.types())
        assert (await command(carrier, control, "record_start", {**wanted, "format": "wav"}))[0] == 200
        placed.hang_up()
        await placed.finished()
    first, second = (w.payload for w in platform.webhooks if w.type == "call.recording.saved")
    assert first["recording_urls"].keys() == {"mp3"}
    assert second["recording_urls"].keys() == {"wav"}
    assert "call_control_id" not in first
    assert first["call_session_id"] == placed.leg.call_session_id
    assert platform.types()[-2:] == ["call.hangup", "call.recording.saved"]


async def test_playback_stop_ends_the_current_and_the_queued_texts(
    platform: Platform, account: SimulatedAccount
) -> None:
    async with carrier_for(platform, account, timing=Timing(speed=1.0)) as carrier:
        client = platform.commands_to(carrier.api_url)
        placed = await answered_call(platform, carrier)
        control = placed.leg.call_control_id
        for number in range(3):
            await client.run(Speak(control, f"{number}", "word " * 500, "female", "en-US"))
        await platform.until(lambda: "call.speak.started" in platform.types())
        assert (await command(carrier, control, "playback_stop", {"stop": "all"}))[0] == 200
        await platform.until(lambda: "call.speak.ended" in platform.types())
        placed.hang_up()
        await placed.finished()
    assert platform.types().count("call.speak.started") == 1
    assert platform.last("call.speak.ended").payload["status"] == "completed"
