"""A frame's whole road, from the carrier to its signal: `python -m bench.road --calls 400 --apache [--write]`.

The carrier's sockets send callers' voices to a real gateway, and a whole worker measures them: two processes as in
production, and Kafka between them. No recogniser runs, because it would need the processor for itself. The calls'
events are written to Kafka past the gateway; commands go to a carrier that accepts every one.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bench import command
from bench.frames import FRAME_BYTES
from bench.load import BEGINNING, put_event
from bench.media import Sending, call_of, connect
from bench.partition_queues import PartitionQueues
from bench.signals import PARTS, probe_worker, workers
from dispatchai.kafka.topics import Topic
from dispatchai.records.codec import decode_fields
from dispatchai.simulator import load
from dispatchai.speech.engines import RECORDINGS
from tests.support.callers import CALLERS
from tests.support.follow import follow
from tests.support.gateway_process import gateway
from tests.support.kafka.measured import Broker, broker
from tests.support.processes import cores, used_by_each
from tests.support.report import machine, milliseconds, quantile, table

GATEWAY: Final = "gateway"
WORKER: Final = "worker"
BROKER: Final = "broker"
CARRIER: Final = "carrier"
"""This process. It also follows the signals."""


@dataclass(slots=True)
class Signals:
    """When signals were made, and from which frames. Times in seconds since the epoch."""

    frames: list[tuple[str, int, float, float]] = field(default_factory=list)
    """Call, number of the frame, when the gateway received it, when the signal was made."""

    def add(self, record: Any, _received_at: float) -> None:
        """The next record."""
        _, signal = decode_fields(record.value)
        if signal["kind"] == "UPDATE":
            captured_at, made_at = signal["captured_at"] / 1_000_000, record.timestamp / 1000
            self.frames.append((record.key.decode(), signal["sequence"], captured_at, made_at))


@dataclass(frozen=True, slots=True)
class Measured:
    """What a run showed. Times in seconds; `cores` is processor time per second."""

    calls: int
    road_s: Sequence[float]
    """Frame due at the carrier -> signal made."""
    behind_gateway_s: Sequence[float]
    """Frame at the gateway -> signal made."""
    cores: Mapping[str, float]
    messages: int
    late: int


def payloads() -> list[bytes]:
    """A caller's voice, in frames."""
    pcmu = b"".join(load(RECORDINGS / name).pcmu for name in CALLERS)
    return [pcmu[at : at + FRAME_BYTES] for at in range(0, len(pcmu) - FRAME_BYTES + 1, FRAME_BYTES)]


async def measure(kafka: Broker, calls: int, seconds: float) -> Measured:
    """One run. Raises TimeoutError if the worker does not start."""
    seen = Signals()
    async with AsyncExitStack() as running:
        folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="dispatchai-bench-road-")))
        (worker,) = await running.enter_async_context(workers(kafka, 1, whole=True, folder=folder))
        await probe_worker(kafka)
        served = await running.enter_async_context(gateway(kafka.connection))
        await running.enter_async_context(follow(kafka.connection, Topic.SIGNALS, seen.add))
        async with PartitionQueues(kafka.connection, Topic.CALL_EVENTS) as events:
            for number in range(calls):
                for kind in BEGINNING:
                    put_event(events, call_of(number)[0], kind, time.time())
        sending = Sending(await connect(served.port, calls), payloads())
        pids = {GATEWAY: served.pid, WORKER: worker.pid, BROKER: kafka.pid, CARRIER: os.getpid()}
        task = asyncio.create_task(sending.run(kafka.settle_s + seconds))
        await asyncio.sleep(kafka.settle_s)
        before, since = used_by_each(pids), time.time()
        await task
        after, until = used_by_each(pids), time.time()
        await asyncio.sleep(1)
        for socket in sending.sockets:
            socket.abort()
    offset = time.time() - asyncio.get_running_loop().time()
    numbers = {call_of(number)[0]: number for number in range(calls)}
    road, behind_gateway = [], []
    for call_id, frame, captured_at, made_at in seen.frames:
        if call_id in numbers and since <= captured_at < until:
            road.append(made_at - offset - sending.due(numbers[call_id], frame))
            behind_gateway.append(made_at - captured_at)
    used = cores(before, after, until - since)
    return Measured(calls, road, behind_gateway, used, sending.messages, sending.behind)


def row(measured: Measured) -> list[str]:
    """A line of the table."""
    return [
        f"{measured.calls:,}",
        *(
            milliseconds(quantile(delays, part) for part in PARTS)
            for delays in (measured.road_s, measured.behind_gateway_s)
        ),
        *(f"{each:.2f}" for each in measured.cores.values()),
        f"{measured.late / measured.messages:.1%}",
    ]


async def _measure(arguments: argparse.Namespace) -> str:
    runs = []
    for calls in arguments.calls:
        async with broker(apache=arguments.apache) as kafka:
            measured = await measure(kafka, calls, arguments.seconds)
        runs.append(row(measured))
        print(" · ".join(runs[-1]), file=sys.stderr, flush=True)
    about = (
        f"`python -m bench.road{' --apache' if arguments.apache else ''}`: media sockets of simulated callers at one "
        f"gateway, {kafka.name}, and the whole worker (calls, signals, triage, ranking), without a "
        f"recogniser, for {arguments.seconds:g} s after {kafka.settle_s:g} s in which the broker gets warm. Carrier "
        f"and broker run on the same machine ({machine()})."
    )
    header = (
        *("live calls", "frame due at the carrier → signal made, p50 / p95 / p99 ms"),
        *("frame at the gateway → signal made, p50 / p95 / p99 ms", *(f"{name}, cores" for name in measured.cores)),
        "sent a frame late",
    )
    return "\n".join(["## The whole road of a frame", "", about, "", table(header, runs)])


def main() -> None:
    """Command line."""
    parser = command.parser("bench.road", __doc__)
    parser.add_argument("--calls", type=int, nargs="+", default=[100, 200, 400], help="numbers of live calls to try")
    parser.add_argument("--seconds", type=float, default=30.0, help="how long each is measured (default %(default)s)")
    command.run("bench.road", parser.parse_args(), _measure)


if __name__ == "__main__":
    main()
