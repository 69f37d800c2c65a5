"""The purge of the queue: records that a packet leaves it, and removes it. Reads `dispatch-queue` and `call-events`.

The owner of a partition writes `dispatchai.purged` to `call-events` when a packet is due, and a tombstone to
`dispatch-queue` when it reads that event. `dispatchai.triage.purging` decides when a packet is due. Starting again,
reading again, recording twice and a packet that comes back are all harmless: a packet that is still there after its
purge was recorded is recorded and removed again.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import Final

import structlog
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from agents.ranking import CompactedTopics
from dispatchai.calls.events import EventType
from dispatchai.engine import agent
from dispatchai.engine.app import App
from dispatchai.engine.errors import AssignmentOverError
from dispatchai.engine.fetch import Fetch, Record
from dispatchai.kafka.packet_history import assessed_at_ms, copied_up_to
from dispatchai.kafka.reading import FETCH_PARTITION_BYTES, SilentKafkaError, current_ends, open_reader, unread
from dispatchai.kafka.topics import Topic
from dispatchai.process import memory
from dispatchai.process.clock import now_micros
from dispatchai.records import CallEvent, DecodeError, Micros, decode_as, encode
from dispatchai.triage.purging import KeepFor, QueueContent, QueueEntries, purged_event

log = structlog.get_logger(__name__)

NAME: Final = "queue_purge"

PURGES_PER_S: Final = 250
"""Packets that one process removes in a second. A centre's day is 2,000; the backlog of years takes an hour or two and
costs the other agents next to nothing."""

POLL_S: Final = 1.0
"""How long one poll of the queue waits, and how often due packets are looked for."""

POLL_RECORDS: Final = 50
"""Records of one poll: some 4 ms of decoding. The other agents share this event loop."""

PAUSE_FACTOR: Final = 2
"""After decoding for t seconds the reader waits PAUSE_FACTOR * t: it takes a third of the loop at most."""

COPIED_EVERY_S: Final = 60.0
"""How often to ask whether packets were copied that were not."""

RETRY_S: Final = 5.0
"""Pause before Kafka is asked again after it did not answer."""

_MARK: Final = EventType.PURGED.value.encode()
"""These bytes are in every event of the type, so that other events need not be decoded here."""


Write = Callable[[int, str, CallEvent], Awaitable[None]]
"""Writes an event of a call to `call-events`: (partition, call id, event). Raises AssignmentOverError."""


async def record_due(entries: QueueEntries, now: Micros, most: int, write: Write) -> int:
    """Write `dispatchai.purged` for the packets that are due at `now`, at most `most`. Returns their number."""
    due = entries.due(now, most)
    for entry in due:
        await write(entry.partition, entry.call_id, purged_event(entry, now))
    return len(due)


class PurgeAgent:
    """Removes from the queue what the events say."""

    def __init__(self, topics: CompactedTopics) -> None:
        self._topics = topics

    async def process(self, fetch: Fetch) -> None:
        """Write the tombstones that follow from the events of a fetch. Raises AssignmentOverError."""
        tombstones: defaultdict[int, list[tuple[bytes, bytes | None]]] = defaultdict(list)
        for batch in fetch.batches:
            # A dict keeps the order, and one tombstone of a call is enough.
            keys = dict.fromkeys(record.key for record in batch.records if record.key and _is_purge(record))
            if keys:
                tombstones[batch.tp.partition] += [(key, None) for key in keys]
        if tombstones:
            await self._topics.send(Topic.DISPATCH_QUEUE, tombstones)


def _is_purge(record: Record) -> bool:
    if record.value is None or _MARK not in record.value:
        return False
    try:
        return decode_as(CallEvent, record.value).type == EventType.PURGED
    except DecodeError:
        return False  # the calls agent sends it to the dead-letter topic


class QueuePurge:
    """Records what is due in the partitions of this process, until cancelled."""

    def __init__(self, app: App, keep: KeepFor) -> None:
        self._app = app
        self._keep = keep

    async def run(self) -> None:
        """Read the queue from its beginning at each assignment, and follow it. Raises AssignmentOverError."""
        while True:
            await self._app.lease.wait_open()
            try:
                await self._follow(self._app.lease.generation)
            except AssignmentOverError:
                raise
            except (KafkaError, SilentKafkaError, asyncio.CancelledError) as error:
                # aiokafka leaks the cancellation of its own requests when their connection closes.
                if isinstance(error, asyncio.CancelledError) and _is_cancelled():
                    raise
                log.warning("queue_reading_interrupted", error=f"{type(error).__name__}: {error}")
                await asyncio.sleep(RETRY_S)

    async def _follow(self, generation: int) -> None:
        """Follow the queue in `generation`. Returns at its end, or if the queue must be read again."""
        numbers = sorted({tp.partition for tp in self._app.stalls.partitions() if tp.topic == Topic.CALL_EVENTS})
        if not numbers:
            await asyncio.sleep(POLL_S)
            return
        queue = [TopicPartition(Topic.DISPATCH_QUEUE, number) for number in numbers]
        copied = await copied_up_to(self._app.connection, numbers)
        content = QueueContent(self._keep, copied)
        options = {
            "fetch_max_wait_ms": int(POLL_S * 1000),
            "max_poll_records": POLL_RECORDS,
            "max_partition_fetch_bytes": FETCH_PARTITION_BYTES,
        }
        async with open_reader(self._app.connection, **options) as consumer:
            consumer.assign(queue)
            await consumer.seek_to_beginning(*queue)
            ends = await current_ends(self._app.connection, consumer, queue)
            complete, asked_at = False, time.monotonic()
            while generation == self._app.lease.generation and not content.entries.must_read_again:
                fetched = await consumer.getmany(timeout_ms=int(POLL_S * 1000) if complete else 100)
                begun = time.perf_counter()
                for tp, records in fetched.items():
                    for record in records:
                        place = tp.partition, record.offset, record.timestamp
                        content.put(*place, record.key or b"", record.value, assessed_at_ms(record.headers))
                # Calls in progress come first, however long the queue is.
                await asyncio.sleep(PAUSE_FACTOR * (time.perf_counter() - begun))
                if not complete and not await unread(consumer, ends):
                    complete = True
                    memory.release_freed()
                    if content.not_copied:
                        log.warning(
                            "packets_not_copied", packets=len(content.not_copied), do="dispatchai topics upgrade"
                        )
                if complete and await record_due(content.entries, now_micros(), PURGES_PER_S, self._write):
                    await asyncio.sleep(POLL_S)
                if content.not_copied and time.monotonic() - asked_at > COPIED_EVERY_S:
                    asked_at = time.monotonic()
                    if await copied_up_to(self._app.connection, numbers) != copied:
                        return

    async def _write(self, partition: int, call_id: str, event: CallEvent) -> None:
        await self._app.emitter.send(Topic.CALL_EVENTS, call_id.encode(), encode(event), partition=partition)


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


def make(app: App, keep: KeepFor) -> QueuePurge:
    """Make the agent and the task that feeds it. The ranking agent must be made before: it shares the queue."""
    agent.run_fetches(app, NAME, [Topic.CALL_EVENTS], PurgeAgent(app.fenced).process)
    purge = QueuePurge(app, keep)
    app.background(purge.run)
    return purge
