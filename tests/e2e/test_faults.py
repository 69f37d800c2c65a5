"""Claims about the whole system on a line that goes wrong: what was sent is recorded once, each call has its packet."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from dispatchai.kafka.connection import KafkaConnection
from dispatchai.process.run_info import RunInfo
from dispatchai.records import AudioFrame, FrameKind, Track
from dispatchai.simulator import (
    CallReport,
    Faults,
    SimulatedAccount,
    SimulatedCarrier,
    StreamEnd,
    StreamReport,
    Timing,
    TokenFault,
    load,
)
from dispatchai.speech.engines import RECORDINGS
from tests.support.callers import CALLERS
from tests.support.recorded_run import (
    Packets,
    RecordedStream,
    Streams,
    command_differences,
    differences,
    read_streams,
    stream_differences,
)
from tests.support.system import System, read_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

CALLED = "+15550100911"
CALLS = 20
SPEED = 4.0
PATIENCE_S = 30.0
"""For a machine that does other things too: nothing is timed here."""
STREAM_S = 15.0
"""A caller whose stream is refused waits as long."""

BAD_LINE = Faults(seed=4, frame_duplicates=0.02, frame_swaps=0.02, frame_losses=0.01, command_failures=0.1)
BAD_WEBHOOKS = Faults(
    seed=5, webhook_duplicates=0.2, webhook_retries=0.2, webhook_losses=0.1, webhook_delay_s=0.3, clock_skew_s=100.0
)


class Carrier:
    """The simulated carrier of a running system, and what the topics say of its calls afterwards."""

    def __init__(self, carrier: SimulatedCarrier, connection: KafkaConnection) -> None:
        self._carrier = carrier
        self._connection = connection

    async def calls(self, *lines: Faults) -> list[CallReport]:
        """As many calls as `lines`, at one time, each with its own faults."""
        audios = [load(RECORDINGS / name) for name in CALLERS]
        placed = [
            self._carrier.place_call(audios[n % len(audios)], f"+1555010{n:04d}", CALLED, faults=line)
            for n, line in enumerate(lines)
        ]
        return [await call.finished() for call in placed]

    async def recorded(self, reports: list[CallReport]) -> tuple[Streams, Packets]:
        """What is in the topics once each call has its packet."""
        async with Packets(self._connection) as packets:
            call_ids = [report.leg.call_session_id for report in reports]
            missing = await packets.wait_for(call_ids, PATIENCE_S * 2)
            assert missing == set(), f"calls without a packet: {missing}"
            await packets.drain()
        return await read_streams(self._connection, call_ids), packets


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def carrier(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Carrier]:
    """One system for all tests here: their calls are told apart by their ids."""
    system = System.on(None, tmp_path_factory.mktemp("system"), SPEECH_ENGINE="scripted")
    process = await system.run("up")
    assert process.stdout is not None
    said: asyncio.Task[bytes] | None = None
    try:
        await read_until(process, "Ctrl-C stops everything")
        said = asyncio.create_task(process.stdout.read())  # a pipe that nobody reads would stop the system
        state_dir = Path(system.environment["STATE_DIR"])
        info = RunInfo.load(state_dir)
        assert info is not None
        async with SimulatedCarrier(
            SimulatedAccount.load_or_create(state_dir),
            info.carrier_port,
            info.gateway_url,
            timing=Timing(speed=SPEED, answer_s=PATIENCE_S, stream_s=STREAM_S),
        ) as carrier:
            yield Carrier(carrier, KafkaConnection(info.bootstrap_servers, embedded=True))
    finally:
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(PATIENCE_S):
            if said is not None:
                print((await said).decode())  # pytest shows it with a failure
            await process.wait()


def lost_frames(report: CallReport) -> int:
    return sum(len(stream.lost) for stream in report.streams)


async def test_calls_on_a_bad_line_lose_what_the_line_lost_and_nothing_else(carrier: Carrier) -> None:
    reports = await carrier.calls(*[BAD_LINE] * (CALLS // 2), *[BAD_WEBHOOKS] * (CALLS // 2))
    streams, packets = await carrier.recorded(reports)
    assert [report.failure for report in reports] == [None] * CALLS
    for report in reports:
        call_id = report.leg.call_session_id
        assert list(differences(report, streams[call_id])) == []
        assert list(command_differences(report)) == []
        packet = packets.last[call_id].packet
        assert packet.audio.missing_frames == lost_frames(report)
        assert packet.nlp.transcript
    assert sum(map(lost_frames, reports)) > CALLS
    requests = [command.requests for report in reports for command in report.commands]
    assert max(requests) > 1, "no command failed, so the line was not bad"


async def test_a_carrier_that_reconnects_leaves_one_call_with_gaps(carrier: Carrier) -> None:
    (report,) = await carrier.calls(Faults(reconnects=3, cut_reconnects=1, reconnect_pause_s=1.0))
    streams, packets = await carrier.recorded([report])
    assert report.failure is None
    assert [stream.end for stream in report.streams] == [StreamEnd.CUT, *[StreamEnd.STOPPED] * 3]
    call_id = report.leg.call_session_id
    assert list(differences(report, streams[call_id])) == []
    assert list(command_differences(report)) == []
    assert list(streams[call_id]) == [stream.stream_id for stream in report.streams]
    assert packets.last[call_id].packet.complete
    assert packets.last[call_id].packet.nlp.transcript
    recorded = list(streams[call_id].values())
    for before, after, sent, sent_next in zip(recorded, recorded[1:], report.streams, report.streams[1:], strict=False):
        missed = sent_next.first_frame - (sent.first_frame + sent.chunks)
        assert missed > 0
        # An END and a START with the pause between them: 20 ms of the caller's time for each frame that is missing.
        pause_s = (after.captured_at[0] - before.captured_at[-1]) / 1_000_000
        assert pause_s > missed * sent.frame_s / 2


async def test_a_stream_with_another_calls_token_harms_no_call(carrier: Carrier) -> None:
    reports = await carrier.calls(
        Faults(), Faults(token=TokenFault.OTHER_CALL), Faults(token=TokenFault.ABSENT), Faults()
    )
    honest = [reports[0], reports[3]]
    streams, packets = await carrier.recorded(honest)
    strangers = {report.leg.call_session_id for report in reports} - {report.leg.call_session_id for report in honest}
    assert strangers & streams.keys() == set(), "audio was taken without the right token"
    for report in honest:
        assert report.failure is None
        assert list(differences(report, streams[report.leg.call_session_id])) == []
        assert packets.last[report.leg.call_session_id].packet.audio.missing_frames == 0


SENT = StreamReport(
    "S", first_frame=0, chunks=6, lost=(3,), messages=6, first_due_at=0.0, frame_s=0.02, end=StreamEnd.CUT
)


def recorded(*sequences: int, end: int = 7) -> RecordedStream:
    frames = [(FrameKind.START, 0), *((FrameKind.FRAME, number) for number in sequences), (FrameKind.END, end)]
    stream = RecordedStream()
    for kind, number in frames:
        stream.add(AudioFrame("S", kind, Track.INBOUND, number, 0, "PCMU", 8000, b"", None))
    return stream


@pytest.mark.parametrize(
    ("stream", "difference"),
    [
        (recorded(1, 2, 4, 5, 6), None),
        (recorded(1, 2, 5, 6), "of 6 chunks 4 (1 in all) were sent and not recorded"),
        (recorded(1, 6), "of 6 chunks 2, 4-5 (3 in all) were sent and not recorded"),
        (recorded(1, 2, 3, 4, 5, 6), "of 6 chunks 3 (1 in all) were recorded and never sent"),
        (recorded(1, 2, 4, 5, 6, 7), "of 6 chunks 7 (1 in all) were recorded and never sent"),
        (recorded(1, 2, 2, 4, 5, 6), "frames are recorded twice or out of order"),
        (recorded(1, 2, 5, 4, 6), "frames are recorded twice or out of order"),
        (recorded(1, 2, 4, 5, 6, end=5), "END has sequence 5, the last chunk was 6"),
        (RecordedStream(), "0 START, 0 END, 0 records after it"),
    ],
)
async def test_the_comparison_finds_what_differs(stream: RecordedStream, difference: str | None) -> None:
    found = list(stream_differences(SENT, stream))
    assert (difference in found) if difference else found == []
