"""A Faust application with the settings that this load needs, each with its reason.

Decides how Faust runs. Leaves to others what the agents are.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import faust
import structlog
import uvloop
from faust.types import TP

from dispatchai.engine.columnar_state import Rows, RowStates
from dispatchai.engine.coverage import Coverage
from dispatchai.engine.emitter import AssignmentOverError, Emitter
from dispatchai.engine.fencing import Latest
from dispatchai.engine.guards import Guard, guards
from dispatchai.engine.keyed_state import States
from dispatchai.engine.lease import Lease
from dispatchai.engine.logs import FAUST_LOG
from dispatchai.engine.metrics import EngineMetrics
from dispatchai.engine.snapshots import SnapshotTable, SnapshotWriter
from dispatchai.engine.stall_detection import StuckError, Watch, run_watch
from dispatchai.engine.transport import Producer, named
from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.readiness import wait_until_reachable
from dispatchai.process import memory
from dispatchai.process.watchdog import Watchdog

log = structlog.get_logger(__name__)

S = TypeVar("S")

SWITCH_INTERVAL_S: Final = 0.0005
"""How often threads may take turns. With Python's 5 ms the consumer's thread and the event loop wait for each other
in convoys: 100 calls then took 621 ms at the median, and 30 ms with this."""

SESSION_TIMEOUT_S: Final = 6.0
"""A worker that is gone is noticed after this; Faust's default is a minute, and brokers allow no less than 6 s by
default. Heartbeats come three times as often."""

REBALANCE_TIMEOUT_S: Final = 12.0
"""How long a member may take to rejoin. Above the session timeout; the embedded broker makes a join wait half of it."""

EMBEDDED_REBALANCE_TIMEOUT_S: Final = 6.0
"""The same where one process of a kind runs against the embedded broker, so that it starts within seconds."""


STUCK_AFTER_S: Final = 30.0
"""How long records may wait without one being processed: above a rebalance with a dead member and a recovery of an
hour's snapshots, which take some 20 s together."""

STOP_S: Final = 9.0
"""How long a stop may take. Kafka's group then has one heartbeat's time left to let go of this member; supervisors
wait for 20 s. What is cut off is read again, as after a crash."""


class App(faust.App):
    """A Faust application that knows what it owes (`coverage`) and writes through `emitter`."""

    logger = FAUST_LOG

    def __init__(
        self, *args: Any, connection: KafkaConnection, dead_letter_topic: str, stuck_after_s: float, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.connection = connection
        self.dead_letter_topic = dead_letter_topic
        self.metrics = EngineMetrics()
        self.metrics.watch_app(self)
        self.watch = Watch(stuck_after_s)
        self._watchdog = Watchdog(self.metrics.loop_delay.observe, stuck_after_s)
        self.guards = guards()
        self.lease = Lease(SESSION_TIMEOUT_S, enforced=Guard.LEASE in self.guards)
        self.dropped = False
        """Whether records of this assignment were dropped: no commit may cover them."""
        self.coverage = Coverage()
        self.emitter = Emitter(self)
        self.latest = Latest(self)
        self.failed = asyncio.Event()
        self.on_forget: list[Callable[[], None]] = []
        """Called when partitions are assigned anew, for what else was kept of their records."""
        self.on_close: list[Callable[[], Coroutine[Any, Any, None]]] = []
        """Awaited when the application stops, after what ran in the background, before Kafka is left."""
        self._snapshots: list[SnapshotWriter] = []
        self._background: list[Callable[[], Coroutine[Any, Any, None]]] = []
        self._tasks: list[asyncio.Task[None]] = []

    def states(
        self,
        name: str,
        *,
        encode: Callable[[S], bytes],
        decode: Callable[[bytes], S],
        partitions: int,
        rest: bool = False,
    ) -> States[S]:
        """The states of one agent, kept in the table `name`; with `rest` untouched ones are held as snapshots only."""
        states: States[S] = States(self, name, encode=encode, decode=decode, partitions=partitions, rest=rest)
        self._snapshots.append(states)
        return states

    def row_states(self, name: str, rows: Rows, *, partitions: int) -> RowStates:
        """The states of one agent that keeps them in columns, `rows`; snapshots are in the table `name`."""
        states = RowStates(self, name, rows, partitions=partitions)
        self._snapshots.append(states)
        return states

    def background(self, run: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run `run()` from the start of the application to its end; if it fails, the application stops.

        It is run anew when what it was writing was of an assignment that is over.
        """

        async def running() -> None:
            over = True
            while over and not self.failed.is_set():
                try:
                    await run()
                    over = False
                except AssignmentOverError:
                    log.debug("begun_anew", task=getattr(run, "__qualname__", ""))

        self._background.append(running)

    def fail(self, error: BaseException) -> None:
        """Stop the application: what it owes cannot be done. Its supervisor starts it again."""
        log.error("application_failed", error=f"{type(error).__name__}: {error}")
        self.failed.set()

    async def crash(self, reason: BaseException) -> None:
        """Called by Faust and its services when one of them cannot go on."""
        self.fail(reason)
        await super().crash(reason)

    async def on_started_init_extra_tasks(self) -> None:
        """Start what runs beside the agents. Called by Faust when its services are up."""
        await super().on_started_init_extra_tasks()
        memory.settle()
        self._watchdog.start()
        self._background += [self._look_after, self.latest.run]
        for snapshots in self._snapshots:
            self._background += [snapshots.run, snapshots.run_sweeps]
        for run in self._background:
            task = asyncio.get_running_loop().create_task(run())
            task.add_done_callback(self._on_background_done)
            self._tasks.append(task)

    async def _look_after(self) -> None:
        """Stop the application when it stands still."""
        try:
            await run_watch(self.watch, self.connection)
        except StuckError as error:
            self.fail(error)

    def _on_background_done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("background_task_failed", exc_info=error)
            self.fail(error)

    def may_send(self) -> bool:
        """Whether what is in the producer's buffer may go to the broker now. Asked before each request.

        In a rebalance an expired lease is not renewed: this process was expelled, or will join anew. What waits is
        dropped then, or the rebalance would wait for its delivery.
        """
        if self.lease.valid:
            return True
        if self.rebalancing:
            self._drop_unsent()
        return False

    def _drop_unsent(self) -> None:
        if isinstance(self._producer, Producer) and (dropped := self._producer.drop()):
            self.dropped = True
            log.warning("lease_lost", batches_dropped=dropped, generation=self.lease.generation)

    def on_rebalance_start(self) -> None:
        """A rebalance begins. Called by Faust, in the consumer's thread."""
        super().on_rebalance_start()
        self.lease.revoked()

    async def _on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        """Forget what was in memory: tables and committed offsets hold what counts.

        At the assignment, not at the revocation: Faust's last commit comes after that signal, and a forgotten
        state would let it commit too far.
        """
        at = self.lease.clock()
        if self.lease.enforced:
            self._drop_unsent()
        for snapshots in self._snapshots:
            snapshots.forget()
        self.coverage.forget()
        for forget in self.on_forget:
            forget()
        self.metrics.forget()
        kept = self._assignment or set()
        for tp in assigned - kept:
            if (table := self.tables._changelogs.get(tp.topic)) is not None:
                table.drop(tp.partition)
        log.debug("assigned", generation=generation_id, partitions=named(assigned))
        self.dropped = False
        self.lease.assigned(generation_id, at)
        await super()._on_partitions_assigned(assigned, generation_id)

    def on_rebalance_end(self) -> None:
        """The tables are recovered and records flow. Called by Faust."""
        super().on_rebalance_end()
        for snapshots in self._snapshots:
            snapshots.recovered()
        self.consumer.open_positions()
        self.lease.resumed()
        log.debug("recovered", generation=self.lease.generation)

    def is_processing(self) -> bool:
        """Whether partitions were assigned and their tables read, so that records flow."""
        return bool(self.flow_control.is_active() and not self.in_recovery and not self.rebalancing)

    @property
    def checks(self) -> Mapping[str, Callable[[], bool]]:
        """What must hold for this process to be ready, by name."""
        return {
            "processing": self.is_processing,
            "kafka": lambda: self.watch.kafka_reachable,
            "running": lambda: not self.failed.is_set(),
        }

    @property
    def changelogs(self) -> dict[str, SnapshotWriter]:
        """Who writes each changelog, by its topic."""
        return {snapshots.table.changelog_topic.get_topic_name(): snapshots for snapshots in self._snapshots}

    def epoch(self, partition: int) -> int:
        """The epoch of what this process writes to `partition` of compacted topics: no owner before had a higher."""
        return max((snapshots.table.epoch(partition) for snapshots in self._snapshots), default=self.lease.generation)

    def states_kept(self) -> dict[str, int]:
        """Of how many keys each agent has stored a state."""
        return {snapshots.name: len(snapshots.table.data) for snapshots in self._snapshots}

    async def on_stop(self) -> None:
        """Write the last snapshots, then stop what runs beside the agents."""
        self._watchdog.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for close in self.on_close:
            await close()
        if not self.failed.is_set():
            # Together: each waits until Kafka has all outputs of before.
            await asyncio.gather(*(snapshots.close() for snapshots in self._snapshots))
        await super().on_stop()


def create_app(
    app_id: str,
    connection: KafkaConnection,
    *,
    dead_letter_topic: str,
    partitions: int,
    web_host: str,
    web_port: int,
    data_dir: Path,
    stuck_after_s: float = STUCK_AFTER_S,
    web_client_max_bytes: int = 65_536,
) -> App:
    """An application `app_id`, which is its consumer group too, that serves HTTP on `web_host:web_port`."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    return App(
        app_id,
        connection=connection,
        dead_letter_topic=dead_letter_topic,
        stuck_after_s=stuck_after_s,
        **connection.faust_options(),
        Table=SnapshotTable,
        store="memory://",
        datadir=data_dir,
        autodiscover=False,
        # Values are bytes here; the agents decode them.
        key_serializer="raw",
        value_serializer="raw",
        # Records of before the first start count too.
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
        # Topics are made by `topics apply`, with their policies; a worker makes none.
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
        web_application_options={"client_max_size": web_client_max_bytes},
        worker_redirect_stdouts=False,
    )


async def run_app(app: App) -> int:
    """Run `app` until SIGTERM, SIGINT or its own failure. Returns the process's exit code: 1 after a failure.

    Waits for Kafka first. The stop takes STOP_S at the most: what has not ended by then, such as an agent that is
    stuck, ends with the process.
    """
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked.set)
    ends = [
        asyncio.create_task(asked.wait()),
        asyncio.create_task(app.failed.wait()),
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
    return 1 if app.failed.is_set() else 0


async def _start(app: App) -> None:
    await wait_until_reachable(app.connection)
    await app.start()


async def _stop(app: App, starting: asyncio.Task[None]) -> None:
    """Stop `app`, though it may be `starting` still, or the process."""
    done, _ = await asyncio.wait([asyncio.ensure_future(_end(app, starting))], timeout=STOP_S)
    for stop in done:
        stop.result()
    if not done:
        log.error("stop_cut_off", after_s=STOP_S)
        os._exit(1)


async def _end(app: App, starting: asyncio.Task[None]) -> None:
    starting.cancel()
    # A start that waits for Kafka's answer is told of it then only.
    await asyncio.gather(starting, return_exceptions=True)
    await app.stop()


def use_uvloop() -> None:
    """Run every event loop of this process, the consumer's thread too, on uvloop."""
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
