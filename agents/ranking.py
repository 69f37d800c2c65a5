"""The ranking agent: puts calls into the queue. Reads `assessments`, writes `packets`, `dispatch-queue`, `live-calls`.

A live entry is written at most four times a second for each call, a packet at once. Every version of a packet is stored
in `packets` before it is put into the queue, from which it is purged later (`agents.queue_purge`).
`dispatchai.triage.ranking` decides where a call stands and what is shown of it. The agent keeps no state: an assessment
contains everything.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Final, Protocol

from faust.types import TP

from dispatchai.engine import agent
from dispatchai.engine.app import App
from dispatchai.engine.commits import Coverage
from dispatchai.engine.emitter import Headers
from dispatchai.engine.fetch import Fetch, Record, consumer_record
from dispatchai.engine.throttle import Throttle
from dispatchai.kafka.packet_history import ASSESSED_AT
from dispatchai.kafka.topics import Topic
from dispatchai.records import AssessmentKind
from dispatchai.triage.queue_writes import PacketWrite, QueueWrites, StoredAssessment
from dispatchai.triage.ranking import Assessed, decode_assessed, without_overtaken

NAME: Final = "ranking"

LIVE_APART_S: Final = 0.25
"""Four live entries a second for each call: as fast as a dispatcher can read one change after another."""


class CompactedTopics(Protocol):
    """Writes records of compacted topics; see `dispatchai.engine.late_writes.FencedTopics`."""

    async def send(
        self, topic: str, records: Mapping[int, Sequence[tuple[bytes, bytes | None]]], headers: Headers = ()
    ) -> None:
        """Write `records`, (key, value) by partition, in the order of the calls."""


Decode = Callable[[TP, Iterable[Record]], Awaitable[list[tuple[Record, Assessed]]]]
"""The records of the partition that hold assessments; the others are dead-lettered."""

Store = Callable[[Sequence[PacketWrite]], Awaitable[None]]
"""Writes packets to `packets`, and returns when Kafka has stored them. Raises AssignmentOverError."""

DeadLetter = Callable[[TP, Record, Exception], Awaitable[None]]
"""Sends a record of the partition to the dead-letter topic, with the error that it caused."""


class RankingAgent:
    """Makes entries of assessments, and holds live ones back that come too fast."""

    def __init__(
        self,
        *,
        decode: Decode,
        topics: CompactedTopics,
        store: Store,
        dead_letter: DeadLetter,
        coverage: Coverage,
        on_live: Callable[[str], None] = lambda _: None,
        on_packet: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`on_live` and `on_packet` are called with the call of each entry written. `clock`: seconds, steady."""
        self._decode = decode
        self._topics = topics
        self._store = store
        self._dead_letter = dead_letter
        self._coverage = coverage
        self._on_live = on_live
        self._on_packet = on_packet
        self._clock = clock
        self._throttle: Throttle[StoredAssessment[Record]] = Throttle(LIVE_APART_S)

    async def process(self, fetch: Fetch) -> None:
        """Write the entries that follow from the assessments of a fetch, and hold back live ones that come too fast.

        Raises AssignmentOverError.
        """
        writes = QueueWrites[Record]()
        for batch in fetch.batches:
            for key, records in batch.by_key():
                for record, assessed in without_overtaken(await self._decode(batch.tp, records)):
                    call_id = (key or b"").decode()  # records without a key were dead-lettered
                    self._take(call_id, StoredAssessment(batch.tp.partition, record, assessed), writes)
        await self._write(writes)

    def _take(self, call_id: str, stored: StoredAssessment[Record], writes: QueueWrites[Record]) -> None:
        match stored.assessed.kind:
            case AssessmentKind.LIVE if self._throttle.offer(call_id, stored, self._clock()):
                writes.add_live(call_id, stored)
            case AssessmentKind.LIVE:
                self._coverage.hold(_source(stored.partition), (NAME, call_id), stored.record.offset)
            case AssessmentKind.FINAL:
                self._throttle.drop(call_id)
                writes.add_packet(call_id, stored)
            case AssessmentKind.EXPIRED:
                self._throttle.drop(call_id)
                writes.add_tombstone(call_id, stored.partition)

    async def write_due(self) -> None:
        """Write the live entries that were held back for long enough. Raises AssignmentOverError."""
        # Nothing is awaited before the entries are in line to be written: a call may end meanwhile, and its entry
        # must not follow its tombstone.
        writes = QueueWrites[Record]()
        for call_id, stored in self._throttle.due(self._clock()):
            writes.add_live(call_id, stored)
        await self._write(writes)

    async def keep_writing_due(self) -> None:
        """Write entries that were held back, until cancelled."""
        while True:
            await self.write_due()
            await asyncio.sleep(LIVE_APART_S / 4)

    async def _write(self, writes: QueueWrites[Record]) -> None:
        # The packet of a call before the tombstone of its live entry: it must not be missing from the queue meanwhile.
        if writes.packets:
            await self._store(writes.packets)
            await asyncio.gather(*(self._put_into_queue(packet) for packet in writes.packets))
        if writes.live:
            await self._topics.send(Topic.LIVE_CALLS, writes.live)
        for call_id in writes.live_of:
            self._on_live(call_id)
        for call_id in writes.packets_of:
            self._on_packet(call_id)
        for stored, error in writes.broken:
            await self._dead_letter(_source(stored.partition), stored.record, error)
        for call_id, partition in writes.shown.items():
            if (held := self._throttle.held(call_id)) is None:
                self._coverage.release(_source(partition), (NAME, call_id))
            else:
                self._coverage.advance(_source(partition), (NAME, call_id), held.record.offset)

    async def _put_into_queue(self, packet: PacketWrite) -> None:
        entries = {packet.partition: [(packet.key, packet.value)]}
        headers = [(ASSESSED_AT, str(packet.assessed_at_ms).encode())]
        await self._topics.send(Topic.DISPATCH_QUEUE, entries, headers)

    def reset(self) -> None:
        """Partitions were reassigned: their owner reads again what was held back."""
        self._throttle.reset()


def _source(partition: int) -> TP:
    return TP(Topic.ASSESSMENTS, partition)


def make(app: App) -> None:
    """Make the agent."""

    async def dead_letter(tp: TP, record: Record, error: Exception) -> None:
        await app.emitter.dead_letter(consumer_record(tp, record), reader=NAME, error=error)

    async def store(packets: Sequence[PacketWrite]) -> None:
        by_partition: defaultdict[int, list[tuple[bytes, bytes | None]]] = defaultdict(list)
        for one in packets:
            by_partition[one.partition].append((one.key, one.value))
        await app.emitter.store(Topic.PACKETS, by_partition)

    for topic in (Topic.LIVE_CALLS, Topic.DISPATCH_QUEUE):
        app.fenced.add(topic)
    made = RankingAgent(
        decode=partial(agent.decoded, app, NAME, decode_assessed),
        topics=app.fenced,
        store=store,
        dead_letter=dead_letter,
        coverage=app.coverage,
        on_live=app.metrics.journey("webhook_to_live").end,
        on_packet=app.metrics.journey("hangup_to_packet").end,
    )
    agent.run_fetches(app, NAME, [Topic.ASSESSMENTS], made.process)
    app.background(made.keep_writing_due)
    app.on_reset.append(made.reset)
