"""Every use of a private part of Faust, and the transport, tables and application that extend it.

The transport is registered for the scheme `dispatchai` under the entry points `faust.transports`. Its consumer hands
agents all records of a topic that a fetch brought as one event, loads changelogs a fetch at a time, and commits no
further than `Commits.offset` allows. `check` compares the installed version with those known to work.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import aiokafka
import faust
import structlog
from aiokafka.errors import IllegalStateError
from aiokafka.partitioner import DefaultPartitioner
from faust.app.base import App as BaseApp
from faust.tables import recovery
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, EventT
from faust.web.drivers import aiohttp as web_driver

from dispatchai.engine import aiokafka_internals as internals
from dispatchai.engine.commits import Commits
from dispatchai.engine.failure import Failure
from dispatchai.engine.metrics import EngineMetrics
from dispatchai.engine.source import Source
from dispatchai.engine.stall_detection import StallDetector
from dispatchai.engine.write_lease import Lease
from dispatchai.kafka import metadata_updates
from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.errors import KafkaOperationError
from dispatchai.kafka.reading import true_ends
from dispatchai.process.http_server import HttpCollector, HttpServer

log = structlog.get_logger(__name__)

KNOWN_VERSIONS: Final = ("0.15.3",)
"""Versions with which the tests of the engine pass."""

SERVICE_LOG: Final = logging.getLogger("faust.engine")
"""Logger of the classes here. They log each step of their start and stop, as Faust's own do; it is below `faust`, so
one level quiets both."""

FETCH_MAX_WAIT_MS: Final = 40
"""How long the broker may hold a fetch back to fill it: two frames' time. Each fetch costs a worker as much as some
hundred records, so with fewer fetches the records of each are sooner processed."""

EMBEDDED_FETCH_MAX_WAIT_MS: Final = 20
"""The same for the embedded broker, which answers at the end of that time whatever arrives before."""

FETCH_MIN_BYTES: Final = 262_144
"""A fetch returns sooner when this much is there: about a thousand frame records."""

WEB_GRACE_S: Final = 3.0
"""How long requests may take at shutdown."""

METADATA_CHECK_S: Final = 1.0
"""How often topics that Kafka did not list are asked for again."""

_TOUCHED: Final[tuple[tuple[type, tuple[str, ...]], ...]] = (
    (
        driver.Consumer,
        (
            *("_acked", "_acked_index", "_add_gap", "_commit", "_commit_offsets", "_commit_tps", "_committed_offset"),
            *("_filter_tps_with_pending_acks", "_getmany", "_new_consumer_thread", "_new_offset", "_read_offset"),
            "_thread",
        ),
    ),
    (driver.AIOKafkaConsumerThread, ("_create_worker_consumer", "_ensure_consumer", "on_thread_stop")),
    (driver.Producer, ("_ensure_producer", "_new_producer", "_producer", "_settings_extra")),
    (faust.Table, ("_serializer_from_type", "apply_changelog_batch")),
    (BaseApp, ("_assignment", "_crash", "_new_web", "_on_partitions_assigned", "_producer")),
)
"""Each class with the parts of it that are overridden or touched here."""


LOST_RECORDS: Final = (
    "the changelog {0} ends at {2}, before offset {1}, up to which this process has read it: its records are gone, "
    "because the topic was deleted and created again, or Kafka lost data. A new process goes on with what is there"
)
"""What Faust says when a changelog is shorter than it was: {0} is its partition, {1} what was read, {2} its end."""


def check() -> None:
    """Raise UnsupportedVersionError if the installed Faust is not one that this file is known to fit."""
    internals.check_library("faust-streaming", faust.__version__, KNOWN_VERSIONS, _TOUCHED)
    # Without it: Faust tells the operator to remove the files of a RocksDB that the program does not have.
    recovery.E_PERSISTED_OFFSET = LOST_RECORDS


@dataclass(frozen=True, slots=True)
class Collaborators:
    """What the consumer and the producer of an application work with. Faust constructs them; they find it there."""

    connection: KafkaConnection
    lease: Lease
    failure: Failure
    stalls: StallDetector
    commits: Commits
    source: Source
    metrics: EngineMetrics


class ChangelogTable(faust.Table):
    """A Faust table that owns a changelog topic, for recovery and the assignment of partitions.

    Its states are in a `SnapshotStore`, which the consumer loads; Faust's own loading takes one record at a time,
    5,500 a second.
    """

    logger = SERVICE_LOG

    def _serializer_from_type(self, typ: object) -> str:
        """Keys and values are raw bytes. Without it: Faust writes and reads a str key as JSON."""
        return "raw"

    def apply_changelog_batch(self, batch: Iterable[EventT]) -> None:
        """Nothing: the store has loaded the records as they were fetched. Called by Faust."""


class ConsumerThread(driver.AIOKafkaConsumerThread):
    """Faust's consumer thread, with aiokafka's consumer adapted to the engine."""

    logger = SERVICE_LOG

    @property
    def _shared(self) -> Collaborators:
        shared: Collaborators = self.app.collaborators
        return shared

    def _create_worker_consumer(self, transport: driver.Transport) -> aiokafka.AIOKafkaConsumer:
        consumer = super()._create_worker_consumer(transport)
        wait_ms = EMBEDDED_FETCH_MAX_WAIT_MS if self._shared.connection.embedded else FETCH_MAX_WAIT_MS
        internals.set_fetch_limits(consumer, max_wait_ms=wait_ms, min_bytes=FETCH_MIN_BYTES)
        metadata_updates.limit(consumer)
        return consumer

    async def on_start(self) -> None:
        """Start the consumer and let each of its heartbeats renew the lease. Called by Faust."""
        await super().on_start()
        consumer, lease, failure = self._ensure_consumer(), self._shared.lease, self._shared.failure
        in_app = self.parent_loop.call_soon_threadsafe
        internals.return_whole_batches(consumer)
        internals.on_heartbeat(consumer, lease.clock, lambda *beat: in_app(lease.renewed, *beat))
        internals.on_coordination_failed(consumer, lambda error: in_app(failure.report, error))
        if self._shared.connection.embedded:
            internals.replace_departed_leaders(consumer)
        self._refreshing_topics = asyncio.create_task(self._refresh_topics())

    async def on_thread_stop(self) -> None:
        """Called by Faust when the consumer stops, in its thread."""
        self._refreshing_topics.cancel()
        await super().on_thread_stop()

    async def _refresh_topics(self) -> None:
        while True:
            await asyncio.sleep(METADATA_CHECK_S)
            await internals.refresh_unknown_topics(self._ensure_consumer())


class Consumer(driver.Consumer):
    """Faust's consumer that reads batches and commits no further than the engine allows."""

    logger = SERVICE_LOG

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._shared: Collaborators = self.app.collaborators
        self._known_committed: dict[TP, int | None] = {}
        """The committed offsets that Kafka has, as far as this process knows."""

    def _new_consumer_thread(self) -> ConsumerThread:
        return ConsumerThread(self, loop=self.loop, beacon=self.beacon)

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Trust no position until the next seek. Called by Faust."""
        log.debug("partitions_revoked", partitions=names(revoked))
        self._shared.source.revoked()
        self._shared.stalls.revoked()
        await super().on_partitions_revoked(revoked)

    async def perform_seek(self) -> None:
        """Seek to the committed offsets and remember them. Called by Faust."""
        source = self._shared.source
        source.revoked()
        await super().perform_seek()
        self._known_committed = dict(self._committed_offset)
        # A copy, before anything is awaited: records that are handed over move these offsets.
        read = dict(self._read_offset)
        changelogs = self.app.tables.changelog_topics
        partitions = [tp for tp in self.assignment() if tp.topic not in changelogs]
        # A partition without a committed offset is read from its beginning, which need not be 0.
        unread = [tp for tp in partitions if read.get(tp) is None]
        beginnings = await self.earliest_offsets(*unread) if unread else {}
        sought = {tp: read.get(tp) or beginnings.get(tp, 0) for tp in partitions}
        # aiokafka ignores a seek to a committed offset of 0, or to none: the position stays as it is.
        if begun := {tp: offset for tp, offset in sought.items() if not read.get(tp)}:
            await self._thread.seek_wait(begun)
        # Faust's read offset is that of the last record: a batch of one record at the sought offset is not read yet.
        self._read_offset.update({tp: offset - 1 for tp, offset in sought.items()})
        log.debug("positions_sought", offsets=_by_name(sought))
        self._shared.stalls.begin(sought)
        self._shared.commits.sought(sought)
        source.sought(sought)
        if not self.app.rebalancing:
            source.open()

    async def highwaters(self, *partitions: TP) -> Mapping[TP, int]:
        """The end offsets of `partitions`, up to which Faust recovers its tables."""
        ends = await super().highwaters(*partitions)
        return await true_ends(self._shared.connection, ends)

    async def _getmany(self, active_partitions: set[TP] | None, timeout: float) -> Mapping[TP, list[Any]]:  # noqa: ASYNC109
        """One event for each topic of a fetch. Without it: Faust pays 100 µs for each record."""
        source = self._shared.source
        await self._seek_again(source.before_fetch(self._read_offset))
        received = source.receive(await super()._getmany(active_partitions, timeout))
        await self._seek_again(received.seek)
        return received.events

    async def _seek_again(self, offsets: Mapping[TP, int]) -> None:
        """Seek to `offsets`; records in flight from elsewhere are recognised when they arrive."""
        if offsets:
            log.info("positions_sought_again", offsets=_by_name(offsets))
            self._shared.metrics.seeks_again.inc(len(offsets))
            try:
                await self._thread.seek_wait(offsets)
            except IllegalStateError:
                # The consumer thread has lost the partitions, and a rebalance is on its way here: it seeks all of them.
                log.info("seek_of_lost_partitions", offsets=_by_name(offsets))

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        """Nothing. Without it: a batch ends at its last offset, so Faust takes every batch for a gap in the log."""

    def _filter_tps_with_pending_acks(self, topics: Any = None) -> Iterator[TP]:
        """The partitions that may have something to commit: all that are read. Called by Faust."""
        return iter(self._shared.stalls.partitions())

    def _new_offset(self, tp: TP) -> int | None:
        """The offset to commit. Called by Faust.

        Without it: Faust commits what its streams acknowledged. They know neither of held offsets nor of assignments,
        and a late acknowledgement would commit records that were never processed here.
        """
        self._acked[tp].clear()
        self._acked_index[tp].clear()
        return self._shared.commits.offset(tp)

    async def _commit_tps(self, tps: Iterable[TP], start_new_transaction: bool) -> bool:
        self._shared.commits.begin()
        return bool(await super()._commit_tps(tps, start_new_transaction))

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        """Commit `offsets`, unless records that they cover were dropped or refused since they were computed."""
        if not self._shared.commits.valid:
            log.debug("commit_skipped", offsets=_by_name(offsets))
            return False
        done: bool = await super()._commit(offsets)
        log.debug("committed", offsets=_by_name(offsets), done=done)
        if done:
            self._known_committed |= offsets
        return done

    async def _commit_offsets(self, offsets: Mapping[TP, int], start_new_transaction: bool = True) -> bool:
        """Without it: Faust takes offsets for committed although the commit failed, and never tries again."""
        done = bool(await super()._commit_offsets(offsets, start_new_transaction))
        if not done:
            self._committed_offset.update({tp: self._known_committed.get(tp) for tp in offsets})
        return done


class Producer(driver.Producer):
    """Faust's producer, idempotent where the broker can: a retried request neither duplicates nor reorders records.

    Records in its buffer are not sent while the lease is invalid, and are dropped when it will not be valid again.
    """

    logger = SERVICE_LOG

    def _settings_extra(self) -> Mapping[str, Any]:
        connection = self.app.collaborators.connection
        return {
            **super()._settings_extra(),
            "enable_idempotence": not connection.embedded,
            "compression_type": connection.compression_type,
        }

    def _new_producer(self, transactional_id: str | None = None) -> aiokafka.AIOKafkaProducer:
        producer = super()._new_producer(transactional_id)
        internals.send_only_while(producer, self.app.may_send)
        metadata_updates.limit(producer)
        return producer

    def key_partition(self, topic: str, key: bytes) -> TP:
        """The partition of `key`, by which a request for its state finds the worker that holds it. Called by Faust.

        Without it: Faust asks the producer, which knows the partitions of a topic only once it has written to it.
        """
        partitions = list(range(self.app.conf.topic_partitions))
        return TP(topic, DefaultPartitioner()(key, partitions, partitions))

    @property
    def client(self) -> aiokafka.AIOKafkaProducer:
        """aiokafka's producer. Raises faust.exceptions.NotReady before the start."""
        return self._ensure_producer()

    def drop_unsent(self) -> int:
        """Drop the batches that are not in flight, as their assignment is over. Returns their number."""
        return 0 if self._producer is None else internals.drop_unsent(self._producer)


class Transport(driver.Transport):
    """Registered for the scheme `dispatchai` under the entry points `faust.transports`."""

    Consumer: ClassVar[type[Consumer]] = Consumer
    Producer: ClassVar[type[Producer]] = Producer


class Web(web_driver.Web):
    """Faust's web server on the HTTP server of all processes, which has bounds."""

    logger = SERVICE_LOG

    def __init__(self, app: Any, *, connections_max: int) -> None:
        super().__init__(app)
        self.server = HttpServer(self.web_app, grace_s=WEB_GRACE_S, connections_max=connections_max)

    async def start_server(self) -> None:
        """Called by Faust."""
        await self.server.start()
        await self.server.listen(self.app.conf.web_bind, self.app.conf.web_port)

    async def stop_server(self) -> None:
        """Called by Faust."""
        await self.server.stop()


class FaustApp(faust.App):
    """A Faust application whose consumer and producer find their collaborators, with public names for private parts."""

    logger = SERVICE_LOG
    collaborators: Collaborators
    http_connections_max: int

    def _new_web(self) -> Web:
        web = Web(self, connections_max=self.http_connections_max)
        self.collaborators.metrics.registry.register(HttpCollector(web.server.counts))
        return web

    def may_send(self) -> bool:
        """Whether records in the producer's buffer may go to the broker now. Asked before each request."""
        raise NotImplementedError

    def service_failed(self, reason: BaseException) -> None:
        """A service of this application cannot go on because of `reason`."""
        raise NotImplementedError

    def _crash(self, reason: BaseException) -> None:
        """Called by Faust when a service fails, also in the consumer thread.

        Without it: a consumer that failed is only marked, and the process stands still until the stall detection ends
        it after a minute. A service that is cancelled stops.
        """
        if not self.should_stop and not isinstance(reason, asyncio.CancelledError):
            self.loop.call_soon_threadsafe(self.service_failed, reason)
        super()._crash(reason)

    async def before_assignment(self) -> None:
        """Partitions are about to be assigned. Raises KafkaOperationError if this process cannot go on with them."""
        raise NotImplementedError

    def assigned(self, assigned: set[TP], *, new: set[TP], generation: int) -> None:
        """`generation` assigned partitions, of which this process did not own `new` before."""
        raise NotImplementedError

    async def _on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        """Without it: Faust's public signal comes after it has begun to recover tables."""
        try:
            await self.before_assignment()
        except KafkaOperationError as error:
            await self.crash(error)
            return
        self.assigned(assigned, new=assigned - (self._assignment or set()), generation=generation_id)
        await super()._on_partitions_assigned(assigned, generation_id)

    def producer_client(self) -> aiokafka.AIOKafkaProducer:
        """aiokafka's producer of this application. Raises faust.exceptions.NotReady before the start."""
        client: aiokafka.AIOKafkaProducer = self.producer.client
        return client

    def drop_unsent(self) -> int:
        """Drop the batches in the producer's buffer that are not in flight. Returns their number."""
        return self._producer.drop_unsent() if isinstance(self._producer, Producer) else 0

    def committed_offset(self, tp: TP) -> int | None:
        """The offset of `tp` that was committed last, as far as this process knows."""
        offset: int | None = self.consumer._committed_offset[tp]
        return offset

    def end_of_last_fetch(self, tp: TP) -> int | None:
        """The end offset of `tp` in the last fetch response, or None."""
        return self.consumer.highwater(tp) if tp in self.consumer.assignment() else None


def _by_name(offsets: Mapping[TP, int]) -> dict[str, int]:
    """Offsets by ``topic/partition``, for the log."""
    return {f"{tp.topic}/{tp.partition}": offset for tp, offset in sorted(offsets.items())}


def names(partitions: Iterable[TP]) -> list[str]:
    """Partitions as ``topic/partition``, for the log."""
    return [f"{tp.topic}/{tp.partition}" for tp in sorted(partitions)]
