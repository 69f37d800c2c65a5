"""The Faust transport `dispatchai://`: one event for many records, and commits that wait for what is owed.

Faust pays about 100 µs for each event before an agent sees it. So this transport hands an agent all records of a
topic that one fetch brought as one event, a `Fetch`; the price is then paid once per fetch and topic. What is fetched
of a changelog goes to its table at once, and Faust's recovery sees the last record of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Protocol
from weakref import ref

import aiokafka
import numpy as np
import numpy.typing as npt
import structlog
from aiokafka.consumer.fetcher import FetchResult, PartitionRecords
from aiokafka.errors import CorruptRecordException
from aiokafka.producer.transaction_manager import NO_PRODUCER_EPOCH, NO_PRODUCER_ID, PidAndEpoch, TransactionManager
from aiokafka.record.memory_records import MemoryRecords
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from dispatchai.engine.departed_leader import Ghosts
from dispatchai.engine.emitter import AssignmentOverError
from dispatchai.engine.guards import Guard
from dispatchai.engine.logs import FAUST_LOG
from dispatchai.engine.positions import Positions, Verdict
from dispatchai.kafka.reading import EMBEDDED_FETCH_MAX_WAIT_MS, true_ends

log = structlog.get_logger(__name__)

FETCH_MAX_WAIT_MS = 40
"""How long the broker may hold a fetch back to fill it: two frames' time. Each fetch costs a worker as much as some
hundred records, so with fewer of them what is fetched is sooner done."""

FETCH_MIN_BYTES = 262_144
"""A fetch returns sooner when this much is there: about a thousand frame records."""

HELD_POLL_S = 0.05
"""How often the producer looks whether it may send again."""

TOPICS_LOOK_S = 1.0
"""How often topics that Kafka did not name are asked for again."""


class Record(Protocol):
    """A record as it was fetched. Which partition it is of says its `Batch`."""

    offset: int
    timestamp: int
    """Milliseconds since the epoch."""
    timestamp_type: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]


@dataclass(frozen=True, slots=True)
class Batch:
    """The records of one partition that one fetch brought, in the order of their offsets; never empty."""

    tp: TP
    records: tuple[Record, ...]

    @property
    def first_offset(self) -> int:
        """Offset of the first record."""
        return int(self.records[0].offset)

    @property
    def last_offset(self) -> int:
        """Offset of the last record."""
        return int(self.records[-1].offset)

    def offsets(self) -> npt.NDArray[np.int64]:
        """The offset of each record, shape (n,)."""
        count, first = len(self.records), self.first_offset
        if self.last_offset - first == count - 1:
            return np.arange(first, first + count)
        return np.fromiter((record.offset for record in self.records), np.int64, count)

    def by_key(self) -> Iterator[tuple[bytes | None, list[Record]]]:
        """The records of each key, in their order; keys in the order of their first record."""
        groups: dict[bytes | None, list[Record]] = {}
        for record in self.records:
            groups.setdefault(record.key, []).append(record)
        return iter(groups.items())


@dataclass(frozen=True, slots=True)
class Fetch:
    """The records of one topic that one fetch brought, a batch for each partition; never empty.

    To Faust it is the last record of its last batch: when that one counts as read, the others do. `generation` is that
    of the assignment that it belongs to.
    """

    batches: tuple[Batch, ...]
    generation: int


def whole(tp: TP, record: Record, value: Any = None) -> aiokafka.ConsumerRecord:
    """`record` of `tp` as aiokafka hands it over otherwise; `value` may stand for its own."""
    own = record.value if value is None else value
    return aiokafka.ConsumerRecord(
        topic=tp.topic,
        partition=tp.partition,
        offset=record.offset,
        timestamp=record.timestamp,
        timestamp_type=record.timestamp_type,
        key=record.key,
        value=own,
        checksum=None,
        serialized_key_size=0,
        serialized_value_size=0,
        headers=tuple(record.headers),
    )


class _Fetched(dict[Any, Any]):
    """What aiokafka's fetcher has fetched, by partition. It is handed over in whole batches and as it was parsed:
    aiokafka goes through it record by record and makes a ConsumerRecord of each, at 3 µs; parsing costs 0.4."""

    def __setitem__(self, tp: Any, result: Any) -> None:
        # A class of its own would be none to aiokafka, which asks for the very type.
        if isinstance(result, FetchResult):
            result.getall = partial(_all_of, ref(result))
        super().__setitem__(tp, result)


def _all_of(fetched: ref[FetchResult], max_records: int | None = None) -> list[Record]:
    """All records of `fetched`, as its `getall` gives them without `max_records`, but not made anew.

    Raises CorruptRecordException at a batch whose checksum is wrong, after what came before it was had; it is fetched
    again then.

    What holds itself in a circle waits for the garbage collector, with all bytes of the fetch. So a result is not held
    by its own method, and the iterator goes that would hold its records.
    """
    result = fetched()
    if result is None or not result.check_assignment(result._topic_partition) or not result.has_more():
        return []
    source: PartitionRecords = result._partition_records
    taken: list[Record] = []
    while source._records.has_next():
        batch = source._records.next_batch()
        if not batch.validate_crc():
            source._records = MemoryRecords(b"")
            if not taken:
                raise CorruptRecordException(f"a wrong checksum in {result._topic_partition}")
            break
        if not batch.is_control_batch:
            records = list(batch)
            if records and records[0].offset < source.next_fetch_offset:  # a batch is fetched whole
                records = [record for record in records if record.offset >= source.next_fetch_offset]
            taken += records
        source.next_fetch_offset = batch.next_offset
    result._update_position()
    result._partition_records = None
    source._records_iterator = None
    return taken


class ConsumerThread(driver.AIOKafkaConsumerThread):
    """Faust's consumer thread with a fetch that waits some frames' time, which Faust has no setting for."""

    logger = FAUST_LOG

    def _create_worker_consumer(self, transport: driver.Transport) -> aiokafka.AIOKafkaConsumer:
        consumer = super()._create_worker_consumer(transport)
        embedded = self.app.connection.embedded
        consumer._fetch_max_wait_ms = EMBEDDED_FETCH_MAX_WAIT_MS if embedded else FETCH_MAX_WAIT_MS
        consumer._fetch_min_bytes = FETCH_MIN_BYTES
        return consumer

    async def on_start(self) -> None:
        """Start the consumer, and have each of its heartbeats renew the lease. Called by Faust."""
        await super().on_start()
        self._ensure_consumer()._fetcher._records = _Fetched()
        coordinator = self._ensure_consumer()._coordinator
        beat = coordinator._do_heartbeat

        async def beat_and_renew() -> bool:
            generation, at = coordinator.generation, self.app.lease.clock()
            alive: bool = await beat()
            if alive:
                self.parent_loop.call_soon_threadsafe(self.app.lease.renewed, generation, at)
            return alive

        coordinator._do_heartbeat = beat_and_renew
        coordinator._coordination_task.add_done_callback(self._on_coordination_ended)
        if self.app.connection.embedded:
            Ghosts(coordinator)
        self._finding_topics = asyncio.create_task(self._find_topics())

    def _on_coordination_ended(self, coordination: asyncio.Task[None]) -> None:
        """aiokafka lets the group go when something that it did not expect happens, such as a broker that names none as
        it has just started. Nobody else would notice: this process would have no partitions, for ever."""
        if not coordination.cancelled() and (error := coordination.exception()) is not None:
            self.parent_loop.call_soon_threadsafe(self.app.fail, error)

    async def on_thread_stop(self) -> None:
        """Called by Faust when the consumer stops, in its thread."""
        self._finding_topics.cancel()
        await super().on_thread_stop()

    async def _find_topics(self) -> None:
        """Ask again for topics that are not known, until cancelled.

        A broker that has just started names none, and a leader of the group that asked it then assigns nothing to
        anybody. aiokafka lets the group join anew when it learns better, but looks again after five minutes only.
        """
        consumer = self._ensure_consumer()
        while True:
            await asyncio.sleep(TOPICS_LOOK_S)
            known = consumer._client.cluster.partitions_for_topic
            if any(known(topic) is None for topic in consumer.subscription()):
                await consumer._client.force_metadata_update()


class Consumer(driver.Consumer):
    """Faust's consumer that reads batches and commits no further than `app.coverage` allows."""

    logger = FAUST_LOG

    def _new_consumer_thread(self) -> ConsumerThread:
        return ConsumerThread(self, loop=self.loop, beacon=self.beacon)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._positions = Positions()
        self._sought: dict[TP, int] | None = None
        """Where partitions were sought, until agents may have their records."""
        self._begun: dict[TP, int] = {}
        """Where partitions were sought last."""
        self._sought_again: dict[TP, int] = {}
        self._handed: list[Fetch] = []
        """What the last fetch brought."""
        self._known_committed: dict[TP, int | None] = {}
        """What Kafka has as committed, as far as this process knows."""
        self._commits_of = 0
        """Generation in which the offsets of the commit that is under way were computed."""

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Believe no position until the next seek. Called by Faust."""
        log.debug("revoked", partitions=named(revoked))
        self._positions.revoked()
        self.app.watch.revoked()
        await super().on_partitions_revoked(revoked)

    async def perform_seek(self) -> None:
        """Seek to the committed offsets, and remember them. Called by Faust.

        In a rebalance the positions count from its end only (`open_positions`): what reaches the streams before that is
        cleared away, and nobody would notice.
        """
        self._positions.revoked()
        await super().perform_seek()
        self._known_committed = dict(self._committed_offset)
        # A copy, and before anything is awaited: records that are handed over move these offsets.
        read = dict(self._read_offset)
        changelogs = self.app.tables.changelog_topics
        sources = [tp for tp in self.assignment() if tp.topic not in changelogs]
        # A partition without a committed offset is read from its beginning, which need not be 0.
        unread = [tp for tp in sources if read.get(tp) is None]
        beginnings = await self.earliest_offsets(*unread) if unread else {}
        self._sought = {tp: read.get(tp) or beginnings.get(tp, 0) for tp in sources}
        # aiokafka seeks to no committed offset of 0, and to none where there is none: it stays where it is.
        if begun := {tp: offset for tp, offset in self._sought.items() if not read.get(tp)}:
            await self._thread.seek_wait(begun)
        # What was read is what lies before: a batch of one record at the sought offset is not read before it is.
        self._read_offset.update({tp: offset - 1 for tp, offset in self._sought.items()})
        self._begun = self._sought
        log.debug("positions_sought", offsets=_by_name(self._sought))
        self.app.watch.begin(self._sought)
        if not self.app.rebalancing:
            self.open_positions()

    def open_positions(self) -> None:
        """Let agents have what follows the positions that were sought."""
        if self._sought is not None:
            self._sought_again |= self._positions.sought(self._sought)
            self._sought = None

    async def highwaters(self, *partitions: TP) -> Mapping[TP, int]:
        """The end offsets of `partitions`, up to which Faust recovers its tables."""
        ends = await super().highwaters(*partitions)
        return await true_ends(self.app.connection, ends)

    async def _getmany(self, active_partitions: set[TP] | None, timeout: float) -> Mapping[TP, list[Any]]:  # noqa: ASYNC109
        self._note_read()
        if Guard.POSITIONS in self.app.guards:
            again, self._sought_again = self._sought_again, {}
            await self._seek_again(again | self._positions.confirm(self._read_offset))
        fetched = await super()._getmany(active_partitions, timeout)
        tables = self.app.tables
        events: dict[TP, list[Any]] = {}
        by_topic: dict[str, list[Batch]] = {}
        for tp, records in fetched.items():
            if not records:
                continue
            if tp.topic in tables.changelog_topics:
                tables._changelogs[tp.topic].load(tp.partition, records)
                events[tp] = [whole(tp, records[-1])]
            elif admitted := await self._admit(tp, records):
                by_topic.setdefault(tp.topic, []).append(Batch(tp, tuple(admitted)))
        generation = self.app.lease.generation
        self._handed = [Fetch(tuple(batches), generation) for batches in by_topic.values()]
        for fetch in self._handed:
            last = fetch.batches[-1]
            events[last.tp] = [whole(last.tp, last.records[-1], fetch)]
        return events

    def _note_read(self) -> None:
        """What the last fetch brought has reached the streams, or not: all of a `Fetch`, or nothing of it."""
        for fetch in self._handed:
            *others, last = fetch.batches
            if self._read_offset[last.tp] == last.last_offset:
                for batch in others:
                    self._read_offset[batch.tp] = batch.last_offset
        self._handed = []

    async def _seek_again(self, offsets: Mapping[TP, int]) -> None:
        """Seek to `offsets`; what is in flight from elsewhere is told apart when it comes."""
        if offsets:
            log.info("positions_sought_again", offsets=_by_name(offsets))
            self.app.metrics.seeks_again.inc(len(offsets))
            await self._thread.seek_wait(offsets)

    async def _admit(self, tp: TP, records: list[Record]) -> list[Record]:
        """Those of `records` that agents may have now."""
        if Guard.POSITIONS not in self.app.guards:
            return records
        admission = self._positions.admit(tp, records[0].offset, records[-1].offset)
        match admission.verdict:
            case Verdict.TAKE if admission.first_offset == records[0].offset:
                return records
            case Verdict.TAKE:
                return [record for record in records if record.offset >= admission.first_offset]
            case Verdict.DROP:
                return []
            case Verdict.SEEK:
                await self._seek_again({tp: admission.first_offset})
                return []
            case Verdict.TRUNCATED:
                log.error("log_truncated", topic=tp.topic, partition=tp.partition, first_offset=admission.first_offset)
                self.app.metrics.logs_truncated.inc()
                return records

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        """Nothing: a batch ends at its last offset, so Faust would take every batch for a gap in the log."""

    def _filter_tps_with_pending_acks(self, topics: Any = None) -> Iterator[TP]:
        """The partitions that may have something to commit: all that are read. Called by Faust."""
        return iter(self.app.watch.partitions())

    def _new_offset(self, tp: TP) -> int | None:
        """The offset to commit: behind what every agent has processed, but not beyond what is owed. Called by Faust.

        Faust's own acknowledgements are not asked: they know neither of what is owed nor of assignments, and one that
        comes late would commit what was never processed here. None where nothing was done since the partition was
        sought: its former owner's last commit may come after this one asked for it, and must not be undone.
        """
        self._acked[tp].clear()
        self._acked_index[tp].clear()
        processed = self.app.watch.next_offset(tp)
        floor = self.app.coverage.floor(tp) if Guard.COVERAGE in self.app.guards else None
        if processed is None:
            return None
        offset = processed if floor is None else min(processed, floor)
        return offset if offset > self._begun.get(tp, 0) else None

    async def _commit_tps(self, tps: Iterable[TP], start_new_transaction: bool) -> bool:
        self._commits_of = self.app.lease.generation
        return bool(await super()._commit_tps(tps, start_new_transaction))

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        """Commit `offsets`, unless what they cover may have been dropped or refused since they were computed."""
        if self._commits_of != self.app.lease.generation or self.app.dropped or self.app.failed.is_set():
            log.debug("commit_left_out", offsets=_by_name(offsets))
            return False
        done: bool = await super()._commit(offsets)
        log.debug("committed", offsets=_by_name(offsets), done=done)
        if done:
            self._known_committed |= offsets
        return done

    async def _commit_offsets(self, offsets: Mapping[TP, int], start_new_transaction: bool = True) -> bool:
        done = bool(await super()._commit_offsets(offsets, start_new_transaction))
        if not done:
            # Faust takes them for committed all the same, and would not try again.
            self._committed_offset.update({tp: self._known_committed.get(tp) for tp in offsets})
        return done


def _by_name(offsets: Mapping[TP, int]) -> dict[str, int]:
    """Offsets by ``topic/partition``, for the log."""
    return {f"{tp.topic}/{tp.partition}": offset for tp, offset in sorted(offsets.items())}


def named(partitions: Iterable[TP]) -> list[str]:
    """Partitions as ``topic/partition``, for the log."""
    return [f"{tp.topic}/{tp.partition}" for tp in sorted(partitions)]


class Producer(driver.Producer):
    """Faust's producer, idempotent where the broker can: a retried request neither doubles nor reorders records.

    What waits in its buffer is not sent while the lease is not valid, and is dropped when it will not be again.
    """

    logger = FAUST_LOG

    def _settings_extra(self) -> Mapping[str, Any]:
        return {**super()._settings_extra(), "enable_idempotence": not self.app.connection.embedded}

    def _new_producer(self, transactional_id: str | None = None) -> aiokafka.AIOKafkaProducer:
        producer = super()._new_producer(transactional_id)
        accumulator = producer._message_accumulator
        drain = accumulator.drain_by_nodes

        def drain_if_valid(ignore_nodes: Any, muted_partitions: Any = frozenset()) -> Any:
            """What may be sent now, by broker. aiokafka asks whenever something may have become ready."""
            if self.app.may_send():
                return drain(ignore_nodes, muted_partitions)
            accumulator._loop.call_later(HELD_POLL_S, accumulator._wakeup, accumulator._waiter_future)
            return {}, False

        accumulator.drain_by_nodes = drain_if_valid
        return producer

    def drop(self) -> int:
        """Drop what is not on its way, as it follows from an assignment that is over. Returns how many batches.

        What was tried before and is to be sent again is dropped too: a rebalance waits until all is delivered, and
        without a lease nothing will be.
        """
        if self._producer is None:
            return 0
        accumulator = self._producer._message_accumulator
        dropped = [batch for batches in accumulator._batches.values() for batch in batches]
        accumulator._batches.clear()
        tried = [batch for batch in dropped if batch.retry_count]
        accumulator._pending_batches.update(tried)  # they are taken from there when they are done
        for batch in dropped:
            batch.failure(AssignmentOverError())
            batch._drain_waiter.exception()  # if nobody waits for it asyncio would complain
        if tried and accumulator._txn_manager is not None:
            _begin_sequences_anew(accumulator._txn_manager)
        return len(dropped)


def _begin_sequences_anew(manager: TransactionManager) -> None:
    """Have an idempotent producer ask for another id, and count its batches from 0: the broker waits for the sequence
    number of one that was dropped, and would take none behind it."""
    manager._pid_and_epoch = PidAndEpoch(NO_PRODUCER_ID, NO_PRODUCER_EPOCH)
    manager._pid_waiter = asyncio.get_running_loop().create_future()
    manager._sequence_numbers.clear()


class Transport(driver.Transport):
    """Registered for the scheme `dispatchai` under the entry points `faust.transports`."""

    Consumer: ClassVar[type[Consumer]] = Consumer
    Producer: ClassVar[type[Producer]] = Producer
