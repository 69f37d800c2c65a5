"""The ranking agent: puts calls into the queue. Reads `assessments`, writes `live-calls` and `dispatch-queue`.

A live entry is written at most four times a second; a packet at once. Where a call stands is decided in
`dispatchai.triage.ranking`. The agent keeps no state: an assessment says all.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from faust.types import TP

from dispatchai.engine import agent
from dispatchai.engine.app import App
from dispatchai.engine.fetch import Fetch, Record, consumer_record
from dispatchai.engine.throttle import Throttle
from dispatchai.kafka.topics import Topic
from dispatchai.records import Assessment, AssessmentKind, DecodeError, decode_as, decode_fields, encode
from dispatchai.triage.live_encoding import encode_live
from dispatchai.triage.ranking import packet

NAME: Final = "ranking"

LIVE_APART_S: Final = 0.25
"""Four live entries a second of a call: as fast as a dispatcher can read one change after another."""


@dataclass(frozen=True, slots=True)
class Assessed:
    """An assessment as its record has it, and its fields."""

    kind: AssessmentKind
    value: bytes
    fields: Mapping[str, Any]


def decode(value: bytes) -> Assessed:
    """The assessment in a record's value. Raises DecodeError."""
    name, fields = decode_fields(value)
    if name != Assessment.__name__:
        raise DecodeError(f"expected {Assessment.__name__}, found {name}")
    return Assessed(AssessmentKind(fields["kind"]), value, fields)


def live_entry(call_id: str, assessed: Assessed) -> bytes:
    """The value for `live-calls`."""
    return encode_live(call_id, assessed.value, assessed.fields)


def packet_entry(call_id: str, assessed: Assessed) -> bytes:
    """The value for `dispatch-queue`."""
    return encode(packet(call_id, decode_as(Assessment, assessed.value)))


def _is_live(assessed: tuple[Record, Assessed]) -> bool:
    return assessed[1].kind is AssessmentKind.LIVE


def _without_overtaken(assessed: Sequence[tuple[Record, Assessed]]) -> Sequence[tuple[Record, Assessed]]:
    """The assessments of one call without the live ones that a later live one replaces: nobody would see them."""
    last_live = max((number for number, one in enumerate(assessed) if _is_live(one)), default=None)
    return [one for number, one in enumerate(assessed) if number == last_live or not _is_live(one)]


@dataclass(frozen=True, slots=True)
class _Source:
    """An assessment and where it lies."""

    tp: TP
    record: Record
    assessed: Assessed


@dataclass(slots=True)
class _Writing:
    """What is to be written together, by topic and partition."""

    records: dict[str, dict[int, list[tuple[bytes, bytes | None]]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )
    settled: dict[str, TP] = field(default_factory=dict)
    """Calls of which no live entry is owed when it is written, but what is held back by then."""
    live: list[str] = field(default_factory=list)
    final: list[str] = field(default_factory=list)
    broken: list[tuple[_Source, Exception]] = field(default_factory=list)
    """From which nothing can follow."""

    def entry(self, topic: str, shape: Callable[[str, Assessed], bytes], call_id: str, source: _Source) -> None:
        """What follows from `source`."""
        try:
            value = shape(call_id, source.assessed)
        except Exception as error:  # noqa: BLE001 - an agent never raises: what failed goes to the dead letters
            self.broken.append((source, error))
        else:
            self.records[topic][source.tp.partition].append((call_id.encode(), value))

    def live_entry(self, call_id: str, source: _Source) -> None:
        """The live entry of `source`."""
        self.entry(Topic.LIVE_CALLS, live_entry, call_id, source)
        self.live.append(call_id)
        self.settled[call_id] = source.tp

    def packet(self, call_id: str, source: _Source) -> None:
        """The packet of `source`."""
        self.entry(Topic.DISPATCH_QUEUE, packet_entry, call_id, source)
        self.final.append(call_id)

    def no_live_entry(self, call_id: str, tp: TP) -> None:
        """A tombstone: the call is over."""
        self.records[Topic.LIVE_CALLS][tp.partition].append((call_id.encode(), None))
        self.settled[call_id] = tp


def make(app: App) -> None:
    """Make the agent."""
    throttle: Throttle[_Source] = Throttle(LIVE_APART_S)
    app.on_reset.append(throttle.reset)
    for topic in (Topic.LIVE_CALLS, Topic.DISPATCH_QUEUE):
        app.fenced.add(topic)
    to_live, to_packet = app.metrics.journey("webhook_to_live"), app.metrics.journey("hangup_to_packet")

    async def write(writing: _Writing) -> None:
        # A call's packet before the tombstone of its live entry: it is not to be missing from the queue meanwhile.
        for topic in (Topic.DISPATCH_QUEUE, Topic.LIVE_CALLS):
            if records := writing.records.get(topic):
                await app.fenced.send(topic, records)
        for call_id in writing.live:
            to_live.end(call_id)
        for call_id in writing.final:
            to_packet.end(call_id)
        for source, error in writing.broken:
            await app.emitter.dead_letter(consumer_record(source.tp, source.record), reader=NAME, error=error)
        for call_id, tp in writing.settled.items():
            if (held := throttle.held(call_id)) is None:
                app.coverage.release(tp, (NAME, call_id))
            else:
                app.coverage.advance(tp, (NAME, call_id), held.record.offset)

    async def process(fetch: Fetch) -> None:
        writing = _Writing()
        for batch in fetch.batches:
            for key, records in batch.by_key():
                assessed = await agent.decoded(app, NAME, decode, batch.tp, records)
                for record, one in _without_overtaken(assessed):
                    assert key is not None  # noqa: S101 - `decoded` buries records without one
                    call_id, source = key.decode(), _Source(batch.tp, record, one)
                    match one.kind:
                        case AssessmentKind.LIVE:
                            if throttle.offer(call_id, source, time.monotonic()):
                                writing.live_entry(call_id, source)
                            else:
                                app.coverage.hold(batch.tp, (NAME, call_id), record.offset)
                        case AssessmentKind.FINAL:
                            throttle.drop(call_id)
                            writing.packet(call_id, source)
                            writing.no_live_entry(call_id, batch.tp)
                        case AssessmentKind.EXPIRED:
                            throttle.drop(call_id)
                            writing.no_live_entry(call_id, batch.tp)
        await write(writing)

    async def write_held_back() -> None:
        while True:
            # Nothing is awaited until it is in line to be written: a call may end, and its entry must not follow its
            # tombstone.
            writing = _Writing()
            for call_id, source in throttle.due(time.monotonic()):
                writing.live_entry(call_id, source)
            await write(writing)
            await asyncio.sleep(LIVE_APART_S / 4)

    agent.run_fetches(app, NAME, [Topic.ASSESSMENTS], process)
    app.background(write_held_back)
