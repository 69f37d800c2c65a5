"""The load of a measurement, in a process of its own: live calls, one record for each frame of 20 ms, at their pace.

Each call sends its frames at a phase of its own within the 20 ms. Calls arrive and end as `bench.arrivals` plans. Some
time after a call has ended, the event that expires it is written, as the program does. The process reports at its end
what it sent.
"""

from __future__ import annotations

import asyncio
import heapq
import json
import signal
import sys
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from random import Random
from typing import Final
from uuid import uuid4

from bench.arrivals import Arrivals
from bench.frames import FRAME_S, Call
from bench.partition_queues import PartitionQueues
from dispatchai.calls.events import EventType
from dispatchai.engine.app import use_uvloop
from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.topics import Topic
from dispatchai.process import memory
from dispatchai.process.child import Child
from dispatchai.records import CallEvent, encode
from dispatchai.records.avro_primitives import encode_long
from dispatchai.settings import Settings

SLICES: Final = 10
"""The calls are spread over this many slices of a frame's 20 ms, of 2 ms each."""

EXPIRY_S: Final = 90.0
"""How long after a call's end its state is kept; the program's default is an hour. A worker must not fall that far
behind: frames that it reads later count as missing."""

LATE_S: Final = FRAME_S
"""A slice that is sent later than this is late. If many are, this process is the limit, and not the worker."""

MICROS: Final = 1_000_000

BEGINNING: Final = (EventType.INITIATED, EventType.ANSWERED, EventType.STREAMING_STARTED)
"""The events of a call before its caller is heard."""

_CALLER, _CALLED = "+15550100001", "+15550100911"


@dataclass(frozen=True, slots=True)
class Plan:
    """The load to send: `live` calls at a time on average, for `seconds` after a ramp of `ramp_s`."""

    live: int
    ramp_s: float
    seconds: float
    seed: int = 1
    expiry_s: float = EXPIRY_S
    events: bool = False
    """Whether the calls' events are sent too; a whole worker needs them."""


@dataclass(frozen=True, slots=True)
class Sent:
    """What was sent. Lateness is in seconds; `cpu_s` is the processor time of the sending process."""

    calls: int
    frames: int
    late_frames: int
    latest_s: float
    cpu_s: float
    seconds: float
    unacknowledged: int
    """At the end of the plan. If these are more than the frames of a second, the broker did not keep up."""
    peak_live: int


@dataclass(slots=True)
class _Live:
    call: Call
    key: bytes
    partition: int
    ends_at: float


class Load:
    """Sends a plan."""

    def __init__(self, plan: Plan, frames: PartitionQueues, events: PartitionQueues) -> None:
        self._plan = plan
        self._frames = frames
        self._events = events
        self._slices: list[list[_Live]] = [[] for _ in range(SLICES)]
        self._live = 0
        self._expiring: list[tuple[float, bytes, str]] = []
        self._mark = uuid4().hex[:8]
        self.calls = self.frames = self.late_frames = self.peak_live = 0
        self.latest_s = 0.0

    async def run(self, stop: asyncio.Event) -> float:
        """Send until the plan's end or `stop`, then end every call. Returns for how many seconds it sent."""
        plan = self._plan
        length_s = plan.ramp_s + plan.seconds
        planned = Arrivals.load().plan(plan.live, plan.ramp_s, Random(plan.seed))  # noqa: S311 - repeatable
        call = next(planned)
        began = time.time()
        number = 0
        while (due := began + number * FRAME_S / SLICES) < began + length_s and not stop.is_set():
            # Sleep even when late, so that the records can leave.
            await asyncio.sleep(max(0.0, due - time.time()))
            now = time.time()
            # With few calls there may be none for a while, and nothing to measure.
            while began + call.at_s <= now or not self._live:
                self._begin(number, now, now + call.length_s)
                call = next(planned)
            self._send(self._slices[number % SLICES], now, now - due)
            self._expire(now)
            number += 1
        ended = time.time()
        for part in self._slices:
            for live in part:
                self._end(live, ended)
        return ended - began

    def _begin(self, number: int, now: float, ends_at: float) -> None:
        call = Call(f"bench-{self._mark}-{self.calls:06d}", self.calls)
        key = call.call_id.encode()
        live = _Live(call, key, self._frames.partition(key), ends_at)
        self._slices[(number + self.calls) % SLICES].append(live)
        self.calls += 1
        self._live += 1
        self.peak_live = max(self.peak_live, self._live)
        if self._plan.events:
            for kind in BEGINNING:
                self._event(call.call_id, kind, now)
        self._frames.append(live.partition, key, call.start(int(now * MICROS)), int(now * 1000))

    def _send(self, part: list[_Live], now: float, late_s: float) -> None:
        captured_at, timestamp_ms = encode_long(int(now * MICROS)), int(now * 1000)
        append = self._frames.append
        over = False
        for live in part:
            append(live.partition, live.key, live.call.frame(captured_at), timestamp_ms)
            over = over or live.ends_at <= now
        self.frames += len(part)
        self.latest_s = max(self.latest_s, late_s)
        if late_s > LATE_S:
            self.late_frames += len(part)
        if over:
            for live in part:
                if live.ends_at <= now:
                    self._end(live, now)
            part[:] = [live for live in part if live.ends_at > now]

    def _end(self, live: _Live, now: float) -> None:
        self._live -= 1
        self._frames.append(live.partition, live.key, live.call.end(int(now * MICROS)), int(now * 1000))
        if self._plan.events:
            self._event(live.call.call_id, EventType.HANGUP, now)
        heapq.heappush(self._expiring, (now + self._plan.expiry_s, live.key, live.call.call_id))

    def _expire(self, now: float) -> None:
        while self._expiring and self._expiring[0][0] <= now:
            _, _, call_id = heapq.heappop(self._expiring)
            self._event(call_id, EventType.EXPIRED, now)

    def _event(self, call_id: str, kind: EventType, now: float) -> None:
        put_event(self._events, call_id, kind, now)


def put_event(events: PartitionQueues, call_id: str, kind: EventType, now: float) -> None:
    """Write an event of a call to the topic of `events`, as the gateway does for its webhook."""
    at, key, leg = int(now * MICROS), call_id.encode(), f"v3:{call_id}"
    event = CallEvent(
        event_id=f"{call_id}-{kind}",
        type=kind,
        occurred_at=at,
        received_at=at,
        call_control_id=leg,
        from_number=_CALLER,
        to_number=_CALLED,
        attempt=1,
        payload=json.dumps({"data": {"payload": {"call_control_id": leg}}}).encode(),
    )
    events.append(events.partition(key), key, encode(event), int(now * 1000))


@dataclass(slots=True)
class Running:
    """A load that is being sent. `lines` are those that its process printed; the first says when it began."""

    pid: int
    child: Child
    lines: deque[str]
    first_line: asyncio.Event

    async def began_at(self) -> float:
        """Wait until it begins; returns when, in seconds since the epoch. Raises RuntimeError if it failed."""
        ended = asyncio.create_task(self.child.wait())
        wrote = asyncio.create_task(self.first_line.wait())
        await asyncio.wait([ended, wrote], return_when=asyncio.FIRST_COMPLETED)
        ended.cancel()
        wrote.cancel()
        try:
            return float(self.lines[0])
        except (IndexError, ValueError):
            raise RuntimeError("\n".join(["the load generator failed:", *self.lines])) from None

    async def sent(self) -> Sent:
        """Wait until it ends. Raises RuntimeError if it failed."""
        if await self.child.wait() != 0:
            raise RuntimeError("\n".join(["the load generator failed:", *self.lines]))
        return Sent(**json.loads(self.lines[-1]))


@asynccontextmanager
async def load(plan: Plan, environment: dict[str, str]) -> AsyncIterator[Running]:
    """Start a process that sends `plan` to the broker that `environment` names."""
    lines: deque[str] = deque(maxlen=40)
    first_line = asyncio.Event()

    def on_line(line: str) -> None:
        lines.append(line)
        first_line.set()

    argv = [sys.executable, "-m", "bench.load", json.dumps(asdict(plan))]
    async with Child(argv, env=environment, on_line=on_line) as child:
        yield Running(child.pid, child, lines, first_line)


async def _send(plan: Plan, connection: KafkaConnection) -> Sent:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with (
        PartitionQueues(connection, Topic.AUDIO_FRAMES) as frames,
        PartitionQueues(connection, Topic.CALL_EVENTS) as events,
    ):
        sending = Load(plan, frames, events)
        memory.settle()
        before = time.process_time()
        print(time.time(), flush=True)
        seconds = await sending.run(stop)
        unacknowledged, cpu_s = frames.unacknowledged, time.process_time() - before
    return Sent(
        sending.calls,
        sending.frames,
        sending.late_frames,
        sending.latest_s,
        cpu_s,
        seconds,
        unacknowledged,
        sending.peak_live,
    )


if __name__ == "__main__":
    use_uvloop()
    print(json.dumps(asdict(asyncio.run(_send(Plan(**json.loads(sys.argv[1])), Settings(_env_file=None).kafka())))))
