"""A Faust application with the settings that this load needs, each with its reason.

Decides how Faust runs and how the parts of the engine are put together. The agents are made elsewhere.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Mapping, Set
from pathlib import Path
from typing import Any, Final, TypeVar

import structlog
import uvloop
from faust.types import TP

from dispatchai.engine import aiokafka_internals, faust_internals
from dispatchai.engine.checkpoint import Checkpoint, SnapshotSource
from dispatchai.engine.columnar_state import ColumnarStates, Columns
from dispatchai.engine.commits import Commits, Coverage
from dispatchai.engine.emitter import Emitter
from dispatchai.engine.errors import AssignmentOverError, StalledError
from dispatchai.engine.failure import Failure
from dispatchai.engine.faust_internals import ChangelogTable, Collaborators, FaustApp, names
from dispatchai.engine.keyed_state import KeyedStates
from dispatchai.engine.late_writes import FencedTopics
from dispatchai.engine.metrics import AppState, EngineMetrics
from dispatchai.engine.snapshots import SnapshotStore
from dispatchai.engine.source import Source
from dispatchai.engine.stall_detection import StallDetector, detect_stalls
from dispatchai.engine.write_lease import Lease
from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.identity import ClusterChangedError, ClusterIdentity
from dispatchai.kafka.readiness import wait_until_reachable
from dispatchai.process import memory
from dispatchai.process.http_server import CONNECTIONS_MAX
from dispatchai.process.origin_check import origin_check
from dispatchai.process.watchdog import Watchdog

log = structlog.get_logger(__name__)

S = TypeVar("S")

SWITCH_INTERVAL_S: Final = 0.0005
"""How often threads may take turns. With Python's 5 ms the consumer thread and the event loop wait for each other in
convoys: 100 calls then took 621 ms at the median, and 30 ms with this."""

SESSION_TIMEOUT_S: Final = 6.0
"""A worker that is gone is noticed after this. Faust's default is a minute; brokers allow no less than 6 s by default.
Heartbeats come three times as often."""

REBALANCE_TIMEOUT_S: Final = 12.0
"""How long a member may take to rejoin. Above the session timeout; the embedded broker lets a join wait half of it."""

EMBEDDED_REBALANCE_TIMEOUT_S: Final = 6.0
"""The same where one process of a kind runs against the embedded broker, so that it starts within seconds."""

STALL_LIMIT_S: Final = 30.0
"""How long records may wait without one being processed: above a rebalance with a dead member and a recovery of an
hour's snapshots, which take some 20 s together."""

STOP_TIMEOUT_S: Final = 15.0
"""How long a stop may take: above REBALANCE_TIMEOUT_S, since processes that are restarted one after the other stop
while their group still rebalances. Supervisors wait for 20 s. Work that is cut off is read again, as after a crash."""


class App(FaustApp):
    """A Faust application with exact recovery."""

    def __init__(
        self,
        *args: Any,
        connection: KafkaConnection,
        dead_letter_topic: str,
        stall_limit_s: float,
        http_connections_max: int,
        **kwargs: Any,
    ) -> None:
        self.connection = connection
        self.http_connections_max = http_connections_max
        self.failure = Failure()
        self.identity = ClusterIdentity(connection)
        self.lease = Lease(SESSION_TIMEOUT_S)
        self.coverage = Coverage()
        self.stalls = StallDetector(stall_limit_s)
        self.metrics = EngineMetrics()
        self.on_reset: list[Callable[[], None]] = []
        """Called when partitions are reassigned, for whatever else was kept of their records."""
        self.on_close: list[Callable[[], Coroutine[Any, Any, None]]] = []
        """Awaited when the application stops, after its background tasks, before it leaves Kafka."""
        self._checkpoints: dict[str, Checkpoint] = {}
        """By changelog topic."""
        self._background: list[Callable[[], Coroutine[Any, Any, None]]] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._commits = Commits(self.stalls, self.coverage, self.lease, self.failure)
        self._source = Source(self.lease, self.metrics, self._stores)
        self.collaborators = Collaborators(
            connection, self.lease, self.failure, self.stalls, self._commits, self._source, self.metrics
        )
        super().__init__(*args, **kwargs)
        self.emitter = Emitter(
            self.producer_client,
            lease=self.lease,
            failure=self.failure,
            metrics=self.metrics,
            dead_letter_topic=dead_letter_topic,
            on_dropped=self._commits.drop,
        )
        self.fenced = FencedTopics(
            connection,
            lease=self.lease,
            emitter=self.emitter,
            metrics=self.metrics,
            checkpoints=lambda: self._checkpoints,
            assignment=lambda: set(self.consumer.assignment()),
        )
        self._watchdog = Watchdog(self.metrics.loop_delay.observe, stall_limit_s)
        self.metrics.show_app(self._state, self.stalls)

    # ---- what agents are made of -----------------------------------------------------------------------------------

    def keyed_states(
        self,
        name: str,
        *,
        encode: Callable[[S], bytes],
        decode: Callable[[bytes], S],
        partitions: int,
        evict: bool = False,
    ) -> KeyedStates[S]:
        """The states of one agent, with snapshots in table `name`; `evict` keeps idle ones as snapshots only."""
        store = self._store(name)
        states = KeyedStates(name, store, self.coverage, encode=encode, decode=decode, evict=evict)
        self._add_table(states, partitions)
        return states

    def columnar_states(self, name: str, columns: Columns, *, partitions: int) -> ColumnarStates:
        """The states of one agent that keeps them in `columns`, with snapshots in table `name`."""
        states = ColumnarStates(name, self._store(name), self.coverage, columns)
        self._add_table(states, partitions)
        return states

    def _store(self, name: str) -> SnapshotStore:
        return SnapshotStore(name, lambda: self.lease.generation)

    def _add_table(self, source: SnapshotSource, partitions: int) -> None:
        table = self.Table(source.name, key_type=str, value_type=bytes, partitions=partitions, default=None)
        changelog = table.changelog_topic.get_topic_name()
        self._checkpoints[changelog] = Checkpoint(source, changelog, emitter=self.emitter, metrics=self.metrics)

    def _stores(self) -> dict[str, SnapshotStore]:
        return {changelog: checkpoint.source.store for changelog, checkpoint in self._checkpoints.items()}

    def background(self, run: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run `run()` while the application runs. If it fails, the application fails.

        It is run again when a record that it was writing belongs to an assignment that is over.
        """

        async def running() -> None:
            over = True
            while over and not self.failure.has_failed:
                try:
                    await run()
                    over = False
                except AssignmentOverError:
                    log.debug("background_task_restarted", task=getattr(run, "__qualname__", ""))

        self._background.append(running)

    # ---- life of the application, called by Faust ------------------------------------------------------------------

    async def crash(self, reason: BaseException) -> None:
        """One of the services cannot go on."""
        self.failure.report(reason)
        await super().crash(reason)

    def service_failed(self, reason: BaseException) -> None:
        """One of the services has failed. Called unless the application stops anyway."""
        if not self.failure.has_failed:
            self.failure.report(reason)

    async def on_started_init_extra_tasks(self) -> None:
        """The services have started: start everything that runs beside the agents."""
        await super().on_started_init_extra_tasks()
        memory.settle()
        self._watchdog.start()
        self._background += [self._detect_stalls, self.fenced.run]
        for checkpoint in self._checkpoints.values():
            self._background += [checkpoint.run, checkpoint.run_sweeps]
        for run in self._background:
            task = asyncio.get_running_loop().create_task(run())
            task.add_done_callback(self._on_background_done)
            self._tasks.append(task)

    async def _detect_stalls(self) -> None:
        try:
            await detect_stalls(self.stalls, self.connection, f"{self.conf.id}-stall-detection", self.identity)
        except (StalledError, ClusterChangedError) as error:
            self.failure.report(error)

    def _on_background_done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("background_task_failed", exc_info=error)
            self.failure.report(error)

    async def on_stop(self) -> None:
        """Write the last snapshots, then stop everything that runs beside the agents."""
        self._watchdog.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for close in self.on_close:
            await close()
        if not self.failure.has_failed:
            # Together: each waits until Kafka has all earlier outputs.
            await asyncio.gather(*(checkpoint.close() for checkpoint in self._checkpoints.values()))
        await super().on_stop()

    # ---- rebalances, called by Faust -------------------------------------------------------------------------------

    def on_rebalance_start(self) -> None:
        """A rebalance begins. Called in the consumer thread."""
        super().on_rebalance_start()
        self.lease.revoked()

    async def before_assignment(self) -> None:
        """Raise ClusterChangedError if the partitions that are about to be assigned are of another cluster."""
        await self.identity.check()

    def assigned(self, assigned: set[TP], *, new: set[TP], generation: int) -> None:
        """Discard everything in memory: tables and committed offsets hold what counts.

        At the assignment and not at the revocation: Faust's last commit comes after that, and without the held offsets
        it would go too far.
        """
        at = self.lease.clock()
        self._drop_unsent()
        for checkpoint in self._checkpoints.values():
            checkpoint.reset()
        self.coverage.reset()
        for reset in self.on_reset:
            reset()
        self.metrics.reset()
        kept = assigned - new
        for changelog, store in self._stores().items():
            store.keep({tp.partition for tp in kept if tp.topic == changelog})
        log.debug("partitions_assigned", generation=generation, partitions=names(assigned))
        self._commits.assigned()
        self.lease.assigned(generation, at)

    def on_rebalance_end(self) -> None:
        """The tables are recovered and records flow."""
        super().on_rebalance_end()
        for checkpoint in self._checkpoints.values():
            checkpoint.recovered()
        self._source.open()
        self.lease.resumed()
        log.debug("tables_recovered", generation=self.lease.generation)

    def may_send(self) -> bool:
        """Whether records in the producer's buffer may go to the broker now. Asked before each request.

        An expired lease is not renewed in a rebalance: this process was expelled, or will rejoin. The buffer is
        dropped then, because the rebalance would wait for its delivery.
        """
        if self.lease.valid:
            return True
        if self.rebalancing:
            self._drop_unsent()
        return False

    def _drop_unsent(self) -> None:
        if dropped := self.drop_unsent():
            self._commits.drop()
            log.warning("lease_lost", batches_dropped=dropped, generation=self.lease.generation)

    # ---- what is shown ---------------------------------------------------------------------------------------------

    def is_processing(self) -> bool:
        """Whether the group has assigned this process its partitions, and their tables are read, so that records flow.

        That may be no partition at all: in a group of more processes than partitions, and while the topics are missing.
        """
        return bool(self.flow_control.is_active() and not self.in_recovery and not self.rebalancing)

    @property
    def checks(self) -> Mapping[str, Callable[[], bool]]:
        """The conditions for this process to be ready, by name."""
        return {
            "processing": self.is_processing,
            "topics": lambda: not self.stalls.missing_topics,
            "kafka": lambda: self.stalls.kafka_reachable,
            "running": lambda: not self.failure.has_failed,
        }

    def details(self) -> Mapping[str, Any]:
        """Further fields of the page of readiness: the missing topics, if there are any."""
        missing = self.stalls.missing_topics
        return {"missing_topics": list(missing)} if missing else {}

    def _state(self) -> AppState:
        return AppState(
            states={
                checkpoint.source.name: len(checkpoint.source.store.values) for checkpoint in self._checkpoints.values()
            },
            unacknowledged=self.emitter.unacknowledged,
            lease_left_s=self.lease.left_s,
            recovery_remaining=self.tables.recovery.active_remaining_total() if self.in_recovery else 0,
            end=self.end_of_last_fetch,
            committed=self.committed_offset,
            floor=self.coverage.floor,
        )


def create_app(
    app_id: str,
    connection: KafkaConnection,
    *,
    dead_letter_topic: str,
    partitions: int,
    web_host: str,
    web_port: int,
    data_dir: Path,
    web_names: Set[str] = frozenset(),
    stall_limit_s: float = STALL_LIMIT_S,
    web_client_max_bytes: int = 65_536,
    http_connections_max: int = CONNECTIONS_MAX,
) -> App:
    """An application `app_id`, which is also its consumer group, that serves HTTP on `web_host:web_port`.

    `web_names` are the names and addresses, in lower case, under which it is reached besides loopback: `origin_check`.
    Raises UnsupportedVersionError if Faust or aiokafka is not a version that the engine is known to work with.
    """
    aiokafka_internals.check()
    faust_internals.check()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    return App(
        app_id,
        connection=connection,
        dead_letter_topic=dead_letter_topic,
        stall_limit_s=stall_limit_s,
        http_connections_max=http_connections_max,
        **connection.faust_options(),
        Table=ChangelogTable,
        store="memory://",
        datadir=data_dir,
        autodiscover=False,
        # Values are bytes here; the agents decode them.
        key_serializer="raw",
        value_serializer="raw",
        # Records written before the first start count too.
        consumer_auto_offset_reset="earliest",
        # A second of records is read again after a crash, at most; commits cost little.
        broker_commit_interval=1.0,
        broker_session_timeout=SESSION_TIMEOUT_S,
        broker_heartbeat_interval=SESSION_TIMEOUT_S / 3,
        broker_rebalance_timeout=EMBEDDED_REBALANCE_TIMEOUT_S if connection.embedded else REBALANCE_TIMEOUT_S,
        producer_acks=-1,
        producer_linger=0.01,
        producer_max_batch_size=131_072,
        # A full buffer with one active partition makes Faust sleep a second.
        stream_buffer_maxsize=16_384,
        stream_wait_empty=False,
        stream_recovery_delay=0.0,
        # Topics are created with their policies by an operator's command; an application creates none.
        topic_allow_declare=False,
        topic_disable_leader=True,
        topic_partitions=partitions,
        table_standby_replicas=0,
        # The embedded broker's high watermark can lag behind a batch.
        recovery_consistency_check=not connection.embedded,
        web_bind=web_host,
        web_host=web_host,
        web_port=web_port,
        canonical_url=f"http://{web_host}:{web_port}",
        web_tables_enabled=False,
        web_router_enabled=False,
        web_stats_enabled=False,
        web_graph_enabled=False,
        web_metrics_enabled=False,
        web_in_thread=False,
        web_application_options={
            "client_max_size": web_client_max_bytes,
            "middlewares": [origin_check(web_names)],
        },
        worker_redirect_stdouts=False,
    )


async def run_app(app: App) -> int:
    """Run `app` until SIGTERM, SIGINT or its own failure. Returns the process's exit code: 1 after a failure.

    Waits for Kafka first. A stop takes STOP_TIMEOUT_S at most: whatever has not ended by then, such as a stalled agent,
    ends with the process.
    """
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked.set)
    ends = [
        asyncio.create_task(asked.wait()),
        asyncio.create_task(app.failure.wait()),
    ]
    starting = asyncio.create_task(_start(app))
    try:
        await asyncio.wait([starting, *ends], return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in ends:
            task.cancel()
        await asyncio.gather(*ends, return_exceptions=True)
        await _stop(app, starting)
    return 1 if app.failure.has_failed else 0


async def _start(app: App) -> None:
    await wait_until_reachable(app.connection)
    await app.identity.check()
    await app.start()


async def _stop(app: App, starting: asyncio.Task[None]) -> None:
    """Stop `app`, which may still be `starting`; end the process if that takes too long."""
    done, _ = await asyncio.wait([asyncio.ensure_future(_end(app, starting))], timeout=STOP_TIMEOUT_S)
    for stop in done:
        stop.result()
    if not done:
        log.error("stop_timed_out", after_s=STOP_TIMEOUT_S)
        os._exit(1)


async def _end(app: App, starting: asyncio.Task[None]) -> None:
    starting.cancel()
    # A start that waits for Kafka's answer notices the cancellation only then.
    await asyncio.gather(starting, return_exceptions=True)
    await app.stop()


def use_uvloop() -> None:
    """Run every event loop of this process on uvloop, the consumer thread's too."""
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
