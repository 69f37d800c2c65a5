"""Two gateways behind a load balancer: a call whose stream moves from one to the other has one packet."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import cycle
from pathlib import Path

import pytest

from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.embedded_broker import free_port
from dispatchai.process.run_info import RunInfo
from dispatchai.simulator import Faults, SimulatedAccount, SimulatedCarrier, StreamEnd, Timing, load
from dispatchai.speech.engines import RECORDINGS
from tests.support.recorded_run import Packets, command_differences, differences, read_streams
from tests.support.relay import relay
from tests.support.system import System, read_until

PATIENCE_S = 60.0
"""For a machine that is busy with other things: no test here measures time."""


@asynccontextmanager
async def balancer(*ports: int) -> AsyncIterator[tuple[int, list[int]]]:
    """Hands each connection to the next of `ports`. Yields its own port, and the list of the ports chosen so far."""
    next_ports, went = cycle(ports), list[int]()

    def next_port() -> int:
        went.append(next(next_ports))
        return went[-1]

    async with relay(next_port) as port:
        yield port, went


@asynccontextmanager
async def started(system: System, until: str, *arguments: str) -> AsyncIterator[None]:
    """`dispatchai` with `arguments`, once it has printed `until`."""
    process = await system.run(*arguments)
    assert process.stdout is not None
    said: asyncio.Task[bytes] | None = None
    try:
        await read_until(process, until)
        said = asyncio.create_task(process.stdout.read())  # a full pipe would block it
        yield
    finally:
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(PATIENCE_S):
            if said is not None:
                print((await said).decode())  # pytest shows it with a failure
            await process.wait()


@pytest.mark.parametrize("broker", ["apache-kafka"], indirect=True)
@pytest.mark.usefixtures("topics")
async def test_a_stream_that_moves_between_gateways_is_recorded_once_and_makes_one_packet(
    broker: KafkaConnection, tmp_path: Path
) -> None:
    ports = free_port(), free_port()
    async with AsyncExitStack() as running:
        entrance, went = await running.enter_async_context(balancer(*ports))
        shared = {
            "STREAM_TOKEN_SECRET": "the secret that both gateways and the worker have",
            "WS_PUBLIC_URL": f"ws://127.0.0.1:{entrance}/ws",
            "SPEECH_ENGINE": "scripted",
        }
        first = System.on(broker, tmp_path / "first", GATEWAY_PORT=str(ports[0]), **shared)
        await running.enter_async_context(started(first, "Ctrl-C stops everything", "up"))
        info = RunInfo.load(Path(first.environment["STATE_DIR"]))
        account = SimulatedAccount.load_or_create(Path(first.environment["STATE_DIR"]))
        assert info is not None
        second = System.on(
            broker,
            tmp_path / "second",
            GATEWAY_PORT=str(ports[1]),
            TELNYX_PUBLIC_KEY=account.public_key,
            **shared,
        )
        await running.enter_async_context(started(second, "gateway_listening", "gateway"))
        carrier = await running.enter_async_context(
            SimulatedCarrier(
                account,
                info.carrier_port,
                info.gateway_url,
                timing=Timing(speed=4.0, answer_s=PATIENCE_S, stream_s=PATIENCE_S),
            )
        )
        call = carrier.place_call(
            load(RECORDINGS / "kitchen_fire.wav"),
            "+15550100001",
            "+15550100911",
            faults=Faults(reconnects=3, cut_reconnects=1, reconnect_pause_s=1.0),
        )
        report = await call.finished()
        async with Packets(broker) as packets:
            assert await packets.wait_for([report.leg.call_session_id], PATIENCE_S) == set()
            await packets.drain()
        call_id = report.leg.call_session_id
        streams = (await read_streams(broker, [call_id]))[call_id]

    assert report.failure is None
    assert went == [ports[0], ports[1]] * 2
    assert [stream.end for stream in report.streams] == [StreamEnd.CUT, *[StreamEnd.STOPPED] * 3]
    # Each stream has its own numbers, without gaps or duplicates; only the time between two streams is missing.
    assert list(streams) == [stream.stream_id for stream in report.streams]
    assert list(differences(report, streams)) == []
    assert list(command_differences(report)) == []
    packet = packets.last[report.leg.call_session_id].packet
    assert packet.complete
    assert packet.nlp.transcript
    assert packet.audio.missing_frames > 0
    assert packet.degraded is not None
    assert packet.degraded.endswith("of the caller's audio are missing: between two streams")
