"""Every use of a private part of aiokafka. No other file of the program touches one.

Each patch says what breaks without it. `check` runs before an application is made: it compares the installed version
with the versions known to work and looks for each part that is touched, so that an upgrade fails at the start with a
clear error and not in the middle of a call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final
from weakref import ref

import aiokafka
import structlog
from aiokafka.client import AIOKafkaClient
from aiokafka.consumer.fetcher import Fetcher, FetchResult, PartitionRecords
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.errors import CorruptRecordException, KafkaError, RebalanceInProgressError
from aiokafka.producer.message_accumulator import MessageAccumulator, MessageBatch
from aiokafka.producer.transaction_manager import NO_PRODUCER_EPOCH, NO_PRODUCER_ID, PidAndEpoch, TransactionManager
from aiokafka.protocol.group import JoinGroupRequest, SyncGroupRequest
from aiokafka.record.memory_records import MemoryRecords

from dispatchai.engine.errors import AssignmentOverError, UnsupportedVersionError
from dispatchai.engine.fetch import Record

log = structlog.get_logger(__name__)

KNOWN_VERSIONS: Final = ("0.14.0",)
"""Versions with which the tests of the engine pass."""

WRITE_CHECK_S: Final = 0.05
"""How often a producer that may not send checks whether it may again."""

_TOUCHED: Final[tuple[tuple[type, tuple[str, ...]], ...]] = (
    (aiokafka.AIOKafkaConsumer, ("_client", "_coordinator", "_fetcher", "_fetch_max_wait_ms", "_fetch_min_bytes")),
    (aiokafka.AIOKafkaProducer, ("_message_accumulator",)),
    (AIOKafkaClient, ("_metadata_update",)),
    (Fetcher, ("_records",)),
    (FetchResult, ("_partition_records", "_topic_partition", "_update_position", "check_assignment", "getall")),
    (PartitionRecords, ("_records", "_records_iterator", "next_fetch_offset")),
    (GroupCoordinator, ("_coordination_task", "_do_heartbeat", "_send_req", "generation", "member_id")),
    (
        MessageAccumulator,
        ("_batches", "_loop", "_pending_batches", "_txn_manager", "_waiter_future", "_wakeup", "drain_by_nodes"),
    ),
    (MessageBatch, ("_drain_waiter", "failure", "retry_count")),
    (TransactionManager, ("_pid_and_epoch", "_pid_waiter", "_sequence_numbers")),
    (JoinGroupRequest, ("_group", "_group_protocols", "_protocol_type", "_rebalance_timeout", "_session_timeout")),
)
"""Each class with the parts of it that are touched here."""


def check() -> None:
    """Raise UnsupportedVersionError if the installed aiokafka is not one that the patches are known to fit."""
    check_library("aiokafka", aiokafka.__version__, KNOWN_VERSIONS, _TOUCHED)


def check_library(
    name: str, version: str, known: tuple[str, ...], touched: tuple[tuple[type, tuple[str, ...]], ...]
) -> None:
    """Raise UnsupportedVersionError if `version` is not `known`, or a class lacks a part that is `touched`.

    A part is an attribute of the class, or one that its constructor or a method sets on an instance.
    """
    works = f"the engine is known to work with {name} {', '.join(known)}: pip install '{name}=={known[-1]}'"
    if version not in known:
        raise UnsupportedVersionError(f"{name} {version} is installed; {works}")
    for owner, parts in touched:
        missing = [part for part in parts if not hasattr(owner, part) and part not in _instance_attributes(owner)]
        if missing:
            raise UnsupportedVersionError(f"{name} {version}: {owner.__name__} has no {', '.join(missing)}; {works}")


def _instance_attributes(owner: type) -> set[str]:
    """Names of the attributes that the methods of `owner` and of its bases use."""
    codes = (vars(base).get(name) for base in owner.__mro__ for name in vars(base))
    return {name for method in codes if (code := getattr(method, "__code__", None)) for name in code.co_names}


# ---- fetching ------------------------------------------------------------------------------------------------------


def set_fetch_limits(consumer: aiokafka.AIOKafkaConsumer, *, max_wait_ms: int, min_bytes: int) -> None:
    """Let `consumer`, which is not started yet, wait so long for so much.

    Without it: aiokafka takes both as arguments, but Faust constructs the consumer and passes 1500 ms and one byte,
    with no setting for either (faust-streaming 0.15.3).
    """
    consumer._fetch_max_wait_ms = max_wait_ms
    consumer._fetch_min_bytes = min_bytes


def return_whole_batches(consumer: aiokafka.AIOKafkaConsumer) -> None:
    """Let `consumer`, which is started, return the records of a fetch as they were parsed.

    Without it: aiokafka goes through the records one by one and makes a ConsumerRecord of each, at 3 µs; parsing a
    record costs 0.4 µs.
    """
    consumer._fetcher._records = _Fetched()


class _Fetched(dict[Any, Any]):
    """The results that aiokafka's fetcher holds, by partition. `getall` of each is replaced when it is added."""

    def __setitem__(self, tp: Any, result: Any) -> None:
        # Not a subclass of FetchResult: aiokafka compares the type itself.
        if isinstance(result, FetchResult):
            result.getall = partial(_all_of, ref(result))
        super().__setitem__(tp, result)


def _all_of(fetched: ref[FetchResult], max_records: int | None = None) -> list[Record]:
    """All records of `fetched`, in the order of `FetchResult.getall` without `max_records`.

    Raises CorruptRecordException at a batch whose checksum is wrong, once the records before it were returned; the
    batch is then fetched again.

    A reference cycle would keep all bytes of the fetch until the garbage collector runs. So the result is not held by
    its own method, and the iterator that would hold its records is dropped.
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


# ---- group membership ----------------------------------------------------------------------------------------------


def on_heartbeat(
    consumer: aiokafka.AIOKafkaConsumer, clock: Callable[[], float], answered: Callable[[int, float], None]
) -> None:
    """Call `answered(generation, sent_at)` for each heartbeat of `consumer` that the coordinator accepted.

    It is called in the consumer's thread. Without it: nobody knows when the coordinator last heard of this member, so
    there is no lease, and a process that was expelled goes on writing.
    """
    coordinator = consumer._coordinator
    beat: Callable[[], Coroutine[Any, Any, bool]] = coordinator._do_heartbeat

    async def beat_and_report() -> bool:
        generation, sent_at = coordinator.generation, clock()
        accepted = await beat()
        if accepted:
            answered(generation, sent_at)
        return accepted

    coordinator._do_heartbeat = beat_and_report


def on_coordination_failed(consumer: aiokafka.AIOKafkaConsumer, failed: Callable[[BaseException], None]) -> None:
    """Call `failed(error)`, in the consumer's thread, when the coordination task of `consumer` ends with an error.

    Without it: the task ends by an AssertionError, for example when a broker that has just started lists no brokers,
    and the consumer leaves its group silently. The process would have no partitions for ever. (Critical errors of the
    coordinator are raised to the consumer since aiokafka issue 294; an assertion is not.)
    """

    def done(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            failed(error)

    consumer._coordinator._coordination_task.add_done_callback(done)


async def refresh_unknown_topics(consumer: aiokafka.AIOKafkaConsumer) -> None:
    """Ask for metadata again if `consumer` subscribes to topics that Kafka did not list.

    Without it: a broker that has just started lists no topics, a group leader that asked it assigns nothing to
    anybody, and aiokafka looks again after five minutes (`metadata_max_age_ms`).
    """
    known = consumer._client.cluster.partitions_for_topic
    if any(known(topic) is None for topic in consumer.subscription()):
        await consumer._client.force_metadata_update()


def replace_departed_leaders(consumer: aiokafka.AIOKafkaConsumer) -> None:
    """Let `consumer` free its group of a leader that has departed. For the embedded broker only.

    Without it: Tansu 0.6 keeps a leader that left, or was expelled, while the group was forming. It names this leader
    to all who join later, and they wait for its assignment for ever. Tansu drops a leader only if it is a member and
    was not heard of for a session timeout. Apache Kafka has no such leaders.
    """
    _DepartedLeader(consumer._coordinator)


class _DepartedLeader:
    """Watches the joins of a coordinator. A member that was left waiting twice by the same leader joins once in that
    leader's name, which then falls silent and is expelled. If the leader is alive, this only counts as its heartbeat.
    """

    def __init__(self, coordinator: GroupCoordinator) -> None:
        self._coordinator = coordinator
        self._send = coordinator._send_req
        self._join: JoinGroupRequest | None = None
        self._leader = ""
        """The leader that the last join named."""
        self._awaited = ""
        """The leader that left this member waiting the last time."""
        coordinator._send_req = self._send_and_watch

    async def _send_and_watch(self, request: Any) -> Any:
        """Replaces the coordinator's `_send_req`. Raises KafkaError."""
        response = await self._send(request)
        if isinstance(request, JoinGroupRequest) and not response.error_code:
            self._join, self._leader = request, response.leader_id
        elif isinstance(request, SyncGroupRequest):
            await self._synced(response.error_code)
        return response

    async def _synced(self, error_code: int) -> None:
        """Note how waiting for the leader ended."""
        failed = error_code == RebalanceInProgressError.errno and self._leader != self._coordinator.member_id
        if failed and self._awaited == self._leader:
            await self._join_as(self._leader)
            failed = False
        self._awaited = self._leader if failed else ""

    async def _join_as(self, leader: str) -> None:
        last = self._join
        if last is None:
            return
        log.warning("group_leader_departed", group=self._coordinator.group_id, leader=leader)
        request = JoinGroupRequest(
            last._group,
            last._session_timeout,
            last._rebalance_timeout,
            leader,
            None,
            last._protocol_type,
            last._group_protocols,
        )
        try:
            await self._send(request)
        except KafkaError as error:
            log.warning("group_leader_not_replaced", error=f"{type(error).__name__}: {error}")


# ---- producing -----------------------------------------------------------------------------------------------------


def send_only_while(producer: aiokafka.AIOKafkaProducer, may_send: Callable[[], bool]) -> None:
    """Let `producer` send requests only while `may_send()` is true; it is asked before each request.

    Without it: records that wait in the buffer when the lease expires are sent after another process has the
    partitions.
    """
    accumulator = producer._message_accumulator
    drain = accumulator.drain_by_nodes

    def drain_if_allowed(ignore_nodes: Any, muted_partitions: Any = frozenset()) -> Any:
        """The batches to send now, by broker."""
        if may_send():
            return drain(ignore_nodes, muted_partitions)
        accumulator._loop.call_later(WRITE_CHECK_S, accumulator._wakeup, accumulator._waiter_future)
        return {}, False

    accumulator.drain_by_nodes = drain_if_allowed


def drop_unsent(producer: aiokafka.AIOKafkaProducer) -> int:
    """Drop all batches that are not in flight, including those that wait for another try. Returns their number.

    Whoever waits for one gets AssignmentOverError. Without it: a rebalance waits until everything is delivered, and
    without a lease nothing is.
    """
    accumulator = producer._message_accumulator
    dropped = [batch for batches in accumulator._batches.values() for batch in batches]
    accumulator._batches.clear()
    tried = [batch for batch in dropped if batch.retry_count]
    accumulator._pending_batches.update(tried)  # they are removed from there when they are done
    for batch in dropped:
        batch.failure(AssignmentOverError())
        batch._drain_waiter.exception()  # or asyncio reports that nobody waited for it
    if tried and accumulator._txn_manager is not None:
        _reset_sequence_numbers(accumulator._txn_manager)
    return len(dropped)


def _reset_sequence_numbers(manager: TransactionManager) -> None:
    """Let an idempotent producer ask for a new id and count its batches from 0.

    Without it: the broker waits for the sequence number of a batch that was dropped, and refuses every later one.
    """
    manager._pid_and_epoch = PidAndEpoch(NO_PRODUCER_ID, NO_PRODUCER_EPOCH)
    manager._pid_waiter = asyncio.get_running_loop().create_future()
    manager._sequence_numbers.clear()
