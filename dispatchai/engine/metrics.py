"""What an application on the engine counts, for Prometheus: names, labels and buckets.

On the hot path something is counted once a batch, never once a record. Agents name the stages whose latency is
measured; `stall_detection` ends a process that makes no progress.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from faust.types import TP
from prometheus_client import Counter
from prometheus_client.core import GaugeMetricFamily, Metric

from dispatchai.engine.stall_detection import StallDetector
from dispatchai.process.metrics import DELAY_BUCKETS_S, Histogram, ProcessMetrics

BATCH_BUCKETS: Final = (1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000)
"""Records that one fetch brought: 1 on an idle worker, thousands on one that catches up."""

LABEL_VALUES_MAX: Final = 64
"""Most values of a label that are not listed here, such as names of errors. Further ones are counted as OTHER."""

OTHER: Final = "other"

JOURNEYS_MAX: Final = 10_000
"""Most keys between two stages that are remembered. The oldest is dropped first, unmeasured."""


class Journey:
    """The time from one moment of a key to another, which different agents of one process see.

    A key whose first moment this process did not see is not measured. Times are microseconds of the wall clock. Another
    machine's clock may differ, so a negative time counts as 0.
    """

    def __init__(self, latency: Histogram) -> None:
        self._latency = latency
        self._begun_at_us: dict[str, int] = {}

    def begin(self, key: str, at_us: int) -> None:
        """The first moment of `key`. No effect while a journey of `key` is in progress."""
        if len(self._begun_at_us) >= JOURNEYS_MAX:
            del self._begun_at_us[next(iter(self._begun_at_us))]
        self._begun_at_us.setdefault(key, at_us)

    def end(self, key: str) -> None:
        """The last moment of `key`, which is now. No effect if no journey of `key` is in progress."""
        begun_at_us = self._begun_at_us.pop(key, None)
        if begun_at_us is not None:
            self._latency.observe(max(0.0, time.time() - begun_at_us / 1e6))

    def reset(self) -> None:
        """Drop the journeys in progress: other processes own these keys now."""
        self._begun_at_us.clear()


class EngineMetrics(ProcessMetrics):
    """What an application on the engine counts. Used from its event loop only."""

    def __init__(self) -> None:
        super().__init__()
        registry = self.registry
        self._batch_records = Histogram(
            "dispatchai_batch_records",
            "Records that an agent took at once: the sum counts records, the mean shows how far they are coalesced.",
            ["agent", "topic"],
            buckets=BATCH_BUCKETS,
            registry=registry,
        )
        self._batch_seconds = Histogram(
            "dispatchai_batch_seconds",
            "How long an agent worked on one batch, including waits.",
            ["agent", "topic"],
            buckets=DELAY_BUCKETS_S,
            registry=registry,
        )
        self._dead_letters = Counter(
            "dispatchai_dead_letters", "Records that could not be processed.", ["reader", "error"], registry=registry
        )
        self._sent = Counter("dispatchai_records_sent", "Records handed to the producer.", ["topic"], registry=registry)
        self.send_failures = Counter(
            "dispatchai_records_refused",
            "Records that Kafka refused for good; each ends the process.",
            registry=registry,
        )
        self._set_aside = Counter(
            "dispatchai_records_too_large",
            "Records that are too large for Kafka. The beginning of the first of each key is in dead-letters.",
            ["topic"],
            registry=registry,
        )
        self._snapshots = Counter(
            "dispatchai_snapshots",
            "Snapshots of states that were written, including tombstones.",
            ["table"],
            registry=registry,
        )
        self._changelog_bytes = Counter(
            "dispatchai_changelog_bytes", "Bytes of the values of these snapshots.", ["table"], registry=registry
        )
        self.written_again = Counter(
            "dispatchai_records_written_again",
            "Records of compacted topics that a former owner's late request had overwritten.",
            registry=registry,
        )
        self.rebalances = Counter("dispatchai_rebalances", "How often partitions were reassigned.", registry=registry)
        self.seeks_again = Counter(
            "dispatchai_positions_sought_again",
            "Partitions that were read from a wrong position after a rebalance, and sought again.",
            registry=registry,
        )
        self.logs_truncated = Counter(
            "dispatchai_logs_truncated", "Partitions whose log lost records before they were read.", registry=registry
        )
        self._sent_to: dict[str, Counter] = {}
        """The counter of each topic: finding one by its label costs more than counting."""
        self._errors: set[str] = set()
        self._journeys: dict[str, Journey] = {}

    def journey(self, stage: str) -> Journey:
        """The journey that measures `stage`; the same one for every caller."""
        if stage not in self._journeys:
            self._journeys[stage] = Journey(self.stage(stage))
        return self._journeys[stage]

    def reader(self, agent: str, topic: str) -> BatchCounts:
        """What `agent` counts of `topic`. Ask once and keep it."""
        return BatchCounts(self._batch_records.labels(agent, topic), self._batch_seconds.labels(agent, topic))

    def dead_letter(self, reader: str, error: BaseException) -> None:
        """A record went to the dead-letter topic because of `error`."""
        name = type(error).__name__
        if name not in self._errors and len(self._errors) >= LABEL_VALUES_MAX:
            name = OTHER
        else:
            self._errors.add(name)
        self._dead_letters.labels(reader, name).inc()

    def set_aside(self, topic: str) -> None:
        """A record of `topic` was too large for Kafka."""
        self._set_aside.labels(topic).inc()

    def sent(self, topic: str, records: int = 1) -> None:
        """`records` were handed to the producer."""
        count = self._sent_to.get(topic)
        if count is None:
            count = self._sent_to[topic] = self._sent.labels(topic)
        count.inc(records)

    def snapshots(self, table: str, written: int, size_bytes: int) -> None:
        """A round of snapshots was written to the changelog of `table`."""
        self._snapshots.labels(table).inc(written)
        self._changelog_bytes.labels(table).inc(size_bytes)

    def reset(self) -> None:
        """Partitions were reassigned: journeys in progress do not end here."""
        self.rebalances.inc()
        for journey in self._journeys.values():
            journey.reset()

    def show_app(self, state: Callable[[], AppState], stalls: StallDetector) -> None:
        """Show the state of an application at the moment of each scrape."""
        self.kafka_reachable.set_function(lambda: float(stalls.kafka_reachable))
        self.registry.register(_AppCollector(state, stalls))


class BatchCounts:
    """Counts the batches of one agent and topic."""

    def __init__(self, records: Histogram, seconds: Histogram) -> None:
        self._records = records
        self._seconds = seconds

    def took(self, records: int, seconds: float) -> None:
        """A batch of `records` was processed in `seconds`."""
        self._records.observe(records)
        self._seconds.observe(seconds)


@dataclass(frozen=True, slots=True)
class AppState:
    """What an application knows of itself at the moment of a scrape."""

    states: Mapping[str, int]
    """How many keys each agent has stored a state for."""
    unacknowledged: int
    lease_left_s: float
    recovery_remaining: int
    """Changelog records still to be read."""
    end: Callable[[TP], int | None]
    """The end offset of a partition in its last fetch."""
    committed: Callable[[TP], int | None]
    floor: Callable[[TP], int | None]
    """The lowest offset of a partition that is held."""


class _AppCollector:
    """Lag by partition, held offsets, states in memory."""

    def __init__(self, state: Callable[[], AppState], stalls: StallDetector) -> None:
        self._state = state
        self._stalls = stalls

    def collect(self) -> Iterable[Metric]:
        """Called at a scrape."""
        state = self._state()
        yield from self._partitions(state)
        kept = GaugeMetricFamily("dispatchai_states", "Keys for which an agent has stored a state.", labels=["table"])
        for table, count in state.states.items():
            kept.add_metric([table], count)
        yield kept
        yield GaugeMetricFamily(
            "dispatchai_sends_unacknowledged",
            "Sends, each of a record or of a batch, that Kafka has not acknowledged.",
            state.unacknowledged,
        )
        yield GaugeMetricFamily(
            "dispatchai_lease_seconds_left",
            "How long this process may write without another heartbeat: the session timeout at most; at 0 it waits.",
            max(0.0, state.lease_left_s),
        )
        yield GaugeMetricFamily(
            "dispatchai_recovery_remaining_records",
            "Changelog records still to be read before the agents go on; 0 except after a rebalance.",
            state.recovery_remaining,
        )

    def _partitions(self, state: AppState) -> Iterable[Metric]:
        place = ["topic", "partition"]
        lag = GaugeMetricFamily(
            "dispatchai_partition_lag_records", "Consumer lag: records not processed.", labels=place
        )
        uncommitted = GaugeMetricFamily(
            "dispatchai_partition_uncommitted_records",
            "Records processed beyond the committed offset: they are read again after a crash.",
            labels=place,
        )
        held = GaugeMetricFamily(
            "dispatchai_partition_held_records",
            "Records processed beyond the lowest offset held, for example until a snapshot: commits wait for it.",
            labels=place,
        )
        stalled = GaugeMetricFamily(
            "dispatchai_partition_stalled_seconds",
            "How long records have been waiting without one being processed. The process ends at STUCK_AFTER_S.",
            labels=["agent", *place],
        )
        for tp in sorted(self._stalls.partitions()):
            labels = [tp.topic, str(tp.partition)]
            done = self._stalls.next_offset(tp)
            if done is None:
                continue
            # The last fetch or the last request for end offsets, whichever saw more.
            end = max(state.end(tp) or 0, self._stalls.end(tp) or 0)
            lag.add_metric(labels, max(0, end - done))
            committed = state.committed(tp)
            uncommitted.add_metric(labels, 0 if committed is None else max(0, done - committed))
            floor = state.floor(tp)
            held.add_metric(labels, 0 if floor is None else max(0, done - floor))
        for (agent, tp), seconds in sorted(self._stalls.stalls().items()):
            stalled.add_metric([agent, tp.topic, str(tp.partition)], seconds)
        return lag, uncommitted, held, stalled
