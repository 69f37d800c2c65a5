"""Keeps a `QueueView` equal to the two compacted topics, and pushes its changes to subscribers.

Decides how the topics are read (all partitions, no group, so that every worker shows every call), when the view is
complete, how often changes are pushed and when a subscriber is dropped. `web` does HTTP. A value that cannot be read is
counted and skipped: the agent that reads the topic sends it to the dead-letter topic.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import TracebackType
from typing import Final, NoReturn, Self

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition

from dispatchai.console.errors import ConsoleError
from dispatchai.console.kafka_answers import KafkaAnswers
from dispatchai.console.queue_view import MAX_FINALS, Change, Entry, QueueView, StoredPacket
from dispatchai.kafka.clients import make_consumer
from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.reading import FETCH_PARTITION_BYTES, partitions_of, unread
from dispatchai.kafka.topics import Topic
from dispatchai.process.clock import now_micros
from dispatchai.process.log_limit import LogLimit, LogLimits
from dispatchai.records import DecodeError, LiveCall
from dispatchai.records.codec import decode_as

CLIENT_ID: Final = "dispatchai-console"

FETCH_MAX_WAIT_MS: Final = 50
"""How long the broker may hold a fetch back to fill it: a quarter of the time between two pushes."""
FETCH_MIN_BYTES: Final = 65_536
"""A fetch returns sooner once it has this much: 64 entries. Otherwise nearly every entry would be a fetch."""
POLL_MS: Final = 1_000
"""How long one poll waits for records. Bounds how late a probe of the brokers can be."""
POLL_RECORDS: Final = 64
"""Records of one poll: about 10 ms of decoding if all are packets. The agents share this event loop."""
PROBE_S: Final = 3.0
"""How often the brokers are asked for the end offsets, to find a Kafka that is down or a stalled consumer."""
REQUEST_S: Final = 10.0
"""Longest wait for one answer from Kafka. Then the session starts again."""
STALLED_PROBES: Final = 3
"""Probes without progress while records are waiting after which the session starts again."""
BACKOFF_MIN_S: Final = 0.25
BACKOFF_MAX_S: Final = 5.0
FAILURES_LOGGED_EVERY_S: Final = 60.0
"""The least time between two lines about failed attempts."""

PUSH_INTERVAL_S: Final = 0.2
"""Five pushes a second to a subscriber: nobody reads faster."""
PAUSE_FACTOR: Final = 20
"""After decoding for t seconds a push waits PAUSE_FACTOR * t. Making JSON costs about as much as decoding, 0.15 ms a
call each, so an open page takes a tenth of the agents' loop: five pushes a second up to 60 changed calls, then less."""
SLICE: Final = 16
"""Values decoded, or entries turned into JSON, before other tasks of the loop get their turn: 2 to 3 ms."""
SNAPSHOT_FINALS: Final = 200
"""Finished calls that a page starts with, the highest of the queue: as many as it shows. It gets all calls in
progress."""
CHANGES_PER_UPDATE: Final = SLICE
UPDATES_PER_SUBSCRIBER: Final = 512
"""8,192 changes. A subscriber further behind is dropped, and gets a snapshot when it comes back."""
MAX_SUBSCRIBERS: Final = 200

log = structlog.get_logger(__name__)


class FeedState(StrEnum):
    """How far the view can be trusted."""

    STARTING = "STARTING"
    """The topics are not read to their end yet: calls may be missing."""
    LIVE = "LIVE"
    """The topics are read to their end and followed."""
    RECONNECTING = "RECONNECTING"
    """Kafka cannot be reached: the view is out of date."""
    STOPPED = "STOPPED"


class TooManySubscribersError(ConsoleError):
    """MAX_SUBSCRIBERS are connected, or the feed is stopped."""


class _SessionError(ConsoleError):
    """The topics must be read again from their beginning. The message says why."""


@dataclass(frozen=True, slots=True, eq=False)
class Update:
    """The content of one push. With `snapshot` the view was rebuilt, and subscribers read all of it again."""

    state: FeedState
    changes: tuple[Change, ...]
    snapshot: bool = False


@dataclass(slots=True, eq=False)
class Snapshot:
    """The view at one moment: what a subscriber starts with. All that subscribe between two pushes share it."""

    number: int
    """The number of the last change that it includes. It may include some that the next push repeats."""
    live: int
    final: int
    """The calls of the view, by kind; `entries` are fewer if there are more finished calls than SNAPSHOT_FINALS."""
    entries: tuple[Entry, ...]
    texts: list[bytes] = field(default_factory=list)
    """The JSON of the entries in slices, once the first reader has made it while holding `making`."""
    making: asyncio.Lock = field(default_factory=asyncio.Lock)

    @classmethod
    def of(cls, view: QueueView) -> Self:
        """The view as it is now."""
        finals = 0
        chosen: list[Entry] = []
        for entry in view.ranked():
            finals += entry.stored is not None
            if entry.stored is None or finals <= SNAPSHOT_FINALS:
                chosen.append(entry)
        return cls(view.number, view.live_count, view.final_count, tuple(chosen))


@dataclass(slots=True)
class FeedCounts:
    """Counts since the start of the process."""

    records: int = 0
    skipped: int = 0
    sessions: int = 0
    dropped_subscribers: int = 0
    refused_readers: int = 0
    not_shown: int = 0
    """Entries that could not be turned into JSON."""


class Subscription:
    """The updates of one subscriber since it subscribed. They end when the feed stops or drops the subscriber."""

    def __init__(self, on_close: Callable[[Subscription], None]) -> None:
        self._updates: asyncio.Queue[Update | None] = asyncio.Queue(UPDATES_PER_SUBSCRIBER + 1)
        self._on_close = on_close
        self._closed = False

    def offer(self, update: Update) -> bool:
        """Queue `update`. Returns False if the subscriber is too far behind to take it."""
        if self._closed or self._updates.qsize() >= UPDATES_PER_SUBSCRIBER:
            return False
        self._updates.put_nowait(update)
        return True

    def close(self) -> None:
        """End the updates after those that are queued."""
        if not self._closed:
            self._closed = True
            self._updates.put_nowait(None)
            self._on_close(self)

    async def next(self, timeout_s: float) -> Update | None:
        """The next update, or None at the end of the subscription. Raises TimeoutError after `timeout_s` of silence."""
        if self._closed and self._updates.empty():
            return None
        async with asyncio.timeout(timeout_s):
            return await self._updates.get()


class _ViewBuilder:
    """Builds a view from one reading of the topics, from their beginning.

    Values of live calls are kept as bytes, the latest of each call, until somebody needs the view: a thousand live
    calls write four thousand values a second, and a worker without an open page must not pay for decoding them.
    Of packets the version decides which one counts, so they are read as they come; they too are kept as bytes.
    """

    def __init__(
        self, live_topic: str, view: QueueView, counts: FeedCounts, changed: Callable[[_ViewBuilder, Change], None]
    ) -> None:
        self.view = view
        self._live_topic = live_topic
        self._counts = counts
        self._skip_log = LogLimits()
        self._changed = changed
        self._pending: dict[str, tuple[bytes, str]] = {}

    def apply(self, topic: str, partition: int, offset: int, key: bytes | None, value: bytes | None) -> None:
        """Apply one record of one of the topics. A record that cannot be read is counted and skipped."""
        self._counts.records += 1
        place = f"{topic}[{partition}]@{offset}"
        try:
            call_id = (key or b"").decode()
            if not call_id:
                raise DecodeError("no key")
            if topic == self._live_topic and value is not None:
                self._pending[call_id] = (value, place)
            elif topic == self._live_topic:
                self._pending.pop(call_id, None)
                self._notify(self.view.put_live(call_id, None))
            elif value is not None:
                self._notify(self.view.put_packet(call_id, StoredPacket.read(call_id, value)))
            else:
                self._notify(self.view.put_packet(call_id, None))
        except (DecodeError, UnicodeDecodeError) as error:
            self._skip(place, error)

    @property
    def pending(self) -> int:
        """Live calls with a value that is not decoded yet."""
        return len(self._pending)

    @property
    def live_count(self) -> int:
        """The calls in progress, including those whose values are not decoded yet."""
        return self.view.live_count + sum(self.view.get(call_id) is None for call_id in self._pending)

    async def decode_pending(self) -> None:
        """Decode the values that are pending now, and yield to the event loop after each slice."""
        for index, call_id in enumerate(list(self._pending), start=1):
            if (waiting := self._pending.pop(call_id, None)) is not None:
                value, place = waiting
                try:
                    live = decode_as(LiveCall, value)
                    _same_key(call_id, live.call_id)
                    self._notify(self.view.put_live(call_id, live))
                except DecodeError as error:
                    self._skip(place, error)
            if index % SLICE == 0:
                await asyncio.sleep(0)

    def _notify(self, changes: list[Change]) -> None:
        for change in changes:
            self._changed(self, change)

    def _skip(self, place: str, error: ValueError) -> None:
        self._counts.skipped += 1
        if count := self._skip_log.add(type(error).__name__):
            reason = str(error) if isinstance(error, DecodeError) else type(error).__name__
            log.warning("record_skipped", place=place, reason=reason, records=count)


def _same_key(key: str, call_id: str) -> None:
    if key != call_id:
        raise DecodeError("the key is not the record's call_id")


class Feed:
    """The view of all calls in this process. One task keeps it current, another pushes its changes to subscribers.

    `start` returns at once; `wait_ready` and `state` show when the view is complete. While Kafka is down the last view
    stays. Afterwards the topics are read again from their beginning into a new view, which replaces the old one once it
    is complete.
    """

    def __init__(
        self,
        connection: KafkaConnection,
        *,
        max_finals: int = MAX_FINALS,
        live_topic: str = Topic.LIVE_CALLS,
        queue_topic: str = Topic.DISPATCH_QUEUE,
    ) -> None:
        self._connection = connection
        self._live_topic = live_topic
        self._queue_topic = queue_topic
        self._max_finals = max_finals
        self._state = FeedState.STARTING
        self._failure_log = LogLimit(FAILURES_LOGGED_EVERY_S)
        self._ready = asyncio.Event()
        self._push_needed = asyncio.Event()
        self._unsent: dict[str, Change] = {}
        self._rebuilt = False
        self._snapshot: Snapshot | None = None
        """What new subscribers start with, as long as each later change will be pushed to them."""
        self._pushed_state = FeedState.STARTING
        self._subscriptions: set[Subscription] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self.counts = FeedCounts()
        self._answers = KafkaAnswers()
        self._builder = _ViewBuilder(self._live_topic, QueueView(max_finals=max_finals), self.counts, self._changed)

    async def start(self) -> None:
        """Begin to read and to push. Call it once."""
        if self._tasks or self._state is FeedState.STOPPED:
            raise RuntimeError("a feed is started once")
        self._tasks = [
            asyncio.create_task(self._read(), name="console-feed-read"),
            asyncio.create_task(self._push(), name="console-feed-push"),
        ]

    async def stop(self) -> None:
        """End all subscriptions and stop reading. May be called again."""
        self._state = FeedState.STOPPED
        self.close_subscriptions()
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._tasks.clear()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def state(self) -> FeedState:
        """How far the view can be trusted now."""
        return self._state

    @property
    def ready(self) -> bool:
        """Whether the view is complete and follows the topics."""
        return self._state is FeedState.LIVE

    @property
    def subscribers(self) -> int:
        """The number of open subscriptions."""
        return len(self._subscriptions)

    @property
    def live_calls(self) -> int:
        """The number of calls in progress in the whole system."""
        return self._builder.live_count

    @property
    def unheard_calls(self) -> int:
        """The number of answered calls in the whole system whose callers are not heard now.

        0 while Kafka is away and shortly after it: then records are late, and a caller may be heard all the same.
        """
        return self._builder.view.unheard(now_micros()) if self._answers.records_are_current(time.monotonic()) else 0

    @property
    def final_calls(self) -> int:
        """The number of finished calls in the view, of the whole system."""
        return self._builder.view.final_count

    async def wait_ready(self) -> None:
        """Return once the topics have been read to their end for the first time."""
        await self._ready.wait()

    async def current(self) -> QueueView:
        """The view with everything that was read so far. Use it before the next await: it keeps changing."""
        builder = self._builder
        await builder.decode_pending()
        return builder.view

    async def subscribe(self) -> tuple[Subscription, Snapshot]:
        """A subscription, and the snapshot that it starts from. Raises TooManySubscribersError."""
        if self._is_full():
            raise TooManySubscribersError(f"{len(self._subscriptions)} subscribers")
        snapshot = await self.snapshot()
        if self._is_full():
            raise TooManySubscribersError(f"{len(self._subscriptions)} subscribers")
        # Nothing was awaited since the snapshot was valid, so no change is missed.
        subscription = Subscription(self._subscriptions.discard)
        self._subscriptions.add(subscription)
        return subscription, snapshot

    def _is_full(self) -> bool:
        return len(self._subscriptions) >= MAX_SUBSCRIBERS or self._state is FeedState.STOPPED

    async def snapshot(self) -> Snapshot:
        """The view for subscribers: that of the last push, or a new one. Later changes will be pushed to them."""
        if self._snapshot is None:
            view = await self.current()
            if self._snapshot is None:  # another subscriber may have made it meanwhile
                self._snapshot = Snapshot.of(view)
        return self._snapshot

    def close_subscriptions(self) -> None:
        """End every subscription. A server that shuts down calls this."""
        for subscription in tuple(self._subscriptions):
            subscription.close()

    # Pushing

    def _changed(self, builder: _ViewBuilder, change: Change) -> None:
        if builder is not self._builder:
            return
        if self._subscriptions:
            self._unsent[change.call_id] = change
            self._push_needed.set()
        else:
            self._snapshot = None

    def _enter(self, state: FeedState) -> None:
        if self._state is not state and self._state is not FeedState.STOPPED:
            log.info("view_state_changed", before=self._state, now=state)
            self._state = state
            self._push_needed.set()

    async def _push(self) -> None:
        """Push changes to subscribers: at once after a quiet time, then at most every PUSH_INTERVAL_S."""
        loop = asyncio.get_running_loop()
        while True:
            await self._push_needed.wait()
            self._push_needed.clear()
            if not self._subscriptions:
                self._unsent.clear()
                self._snapshot = None
                self._rebuilt = False
                self._pushed_state = self._state
                continue
            began = loop.time()
            await self._builder.decode_pending()
            for update in self._updates():
                for subscription in tuple(self._subscriptions):
                    if not subscription.offer(update):
                        self.counts.dropped_subscribers += 1
                        subscription.close()
            await asyncio.sleep(max(PUSH_INTERVAL_S, PAUSE_FACTOR * (loop.time() - began)))

    def _updates(self) -> list[Update]:
        changes, self._unsent = tuple(self._unsent.values()), {}
        if changes or self._rebuilt:
            self._snapshot = None
        if self._rebuilt:
            self._rebuilt = False
            self._pushed_state = self._state
            return [Update(self._state, (), snapshot=True)]
        updates = [
            Update(self._state, changes[start : start + CHANGES_PER_UPDATE])
            for start in range(0, len(changes), CHANGES_PER_UPDATE)
        ]
        if not updates and self._state is not self._pushed_state:
            updates = [Update(self._state, ())]
        self._pushed_state = self._state
        return updates

    # Reading

    async def _read(self) -> None:
        """Read for ever. After a failure start again: soon if the view was complete, else with growing pauses."""
        pause_s = BACKOFF_MIN_S
        while True:
            self.counts.sessions += 1
            failure: BaseException
            try:
                await self._session()
            except asyncio.CancelledError as error:
                # aiokafka leaks the cancellation of its own requests when their connection closes. Only a cancellation
                # that was requested of this task ends it.
                if (task := asyncio.current_task()) is None or task.cancelling():
                    raise
                failure = error
            # The one boundary: whatever ended the session, even an answer that no client expects, the views keep what
            # they have and the topics are read again.
            except Exception as error:  # noqa: BLE001
                failure = error
            self._answers.lost()
            pause_s = BACKOFF_MIN_S if self._state is FeedState.LIVE else min(2 * pause_s, BACKOFF_MAX_S)
            if failures := self._failure_log.add():
                why = f"{type(failure).__name__}: {failure}"
                log.warning("topics_reading_failed", error=why, retry_s=pause_s, failures=failures)
            if self._ready.is_set():
                self._enter(FeedState.RECONNECTING)
            await asyncio.sleep(pause_s)

    async def _session(self) -> NoReturn:
        """Read both topics from their beginning, then follow them until something fails. Raises that failure."""
        consumer = make_consumer(
            self._connection,
            client_id=CLIENT_ID,
            enable_auto_commit=False,
            # A missing position means that this is another log than the one that was read: start with an empty view.
            auto_offset_reset="none",
            fetch_max_wait_ms=FETCH_MAX_WAIT_MS,
            fetch_min_bytes=FETCH_MIN_BYTES,
            max_partition_fetch_bytes=FETCH_PARTITION_BYTES,
            max_poll_records=POLL_RECORDS,
            request_timeout_ms=int(REQUEST_S * 1_000),
        )
        try:
            async with asyncio.timeout(REQUEST_S):
                partitions = await _partitions(self._connection, (self._live_topic, self._queue_topic))
                await consumer.start()
                consumer.assign(partitions)
                await consumer.seek_to_beginning(*partitions)
            builder = _ViewBuilder(self._live_topic, QueueView(max_finals=self._max_finals), self.counts, self._changed)
            await self._catch_up(consumer, builder)
            self._answers.answered(time.monotonic())
            await builder.decode_pending()
            builder.view.continue_after(self._builder.view)
            self._builder = builder
            self._snapshot = None
            self._rebuilt = True
            self._enter(FeedState.LIVE)
            self._push_needed.set()
            self._ready.set()
            await self._follow(consumer, builder)
        finally:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REQUEST_S):
                    await consumer.stop()

    async def _catch_up(self, consumer: AIOKafkaConsumer, builder: _ViewBuilder) -> None:
        """Read up to where the topics ended at the call. Raises _SessionError if nothing comes for REQUEST_S."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(REQUEST_S):
            ends = await consumer.end_offsets(consumer.assignment())
        moved_at = loop.time()
        while behind := await _behind(consumer, ends):
            if await self._poll(consumer, builder):
                moved_at = loop.time()
            elif loop.time() - moved_at > REQUEST_S:
                raise _SessionError(f"no records come, {behind} before the end")

    async def _follow(self, consumer: AIOKafkaConsumer, builder: _ViewBuilder) -> NoReturn:
        """Read new records. Raises _SessionError if the consumer is stalled, TimeoutError if Kafka is down."""
        loop = asyncio.get_running_loop()
        probed_at = loop.time()
        still = 0
        while True:
            if await self._poll(consumer, builder):
                still = 0
            if loop.time() - probed_at >= PROBE_S:
                probed_at = loop.time()
                async with asyncio.timeout(REQUEST_S):
                    ends = await consumer.end_offsets(consumer.assignment())
                self._answers.answered(time.monotonic())
                still = still + 1 if await _behind(consumer, ends) else 0
                if still >= STALLED_PROBES:
                    raise _SessionError("records are waiting and none comes")

    async def _poll(self, consumer: AIOKafkaConsumer, builder: _ViewBuilder) -> int:
        batches = await consumer.getmany(timeout_ms=POLL_MS)
        for partition, records in batches.items():
            for record in records:
                builder.apply(partition.topic, partition.partition, record.offset, record.key, record.value)
        if builder is self._builder and builder.pending:
            self._push_needed.set()
        await asyncio.sleep(0)  # a poll that finds buffered records does not suspend
        return len(batches)


async def _partitions(connection: KafkaConnection, topics: Sequence[str]) -> list[TopicPartition]:
    """All partitions of `topics`. Raises _SessionError while one of the topics does not exist."""
    found = await partitions_of(connection, topics, client_id=CLIENT_ID)
    for topic, partitions in found.items():
        if not partitions:
            raise _SessionError(f"topic {topic} does not exist yet")
    return [partition for topic in topics for partition in found[topic]]


async def _behind(consumer: AIOKafkaConsumer, ends: dict[TopicPartition, int]) -> int:
    """How many offsets are unread before `ends`, over all partitions. Raises TimeoutError."""
    async with asyncio.timeout(REQUEST_S):
        return sum((await unread(consumer, ends)).values())
