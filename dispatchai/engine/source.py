"""What the consumer does with the records that it fetches: changelogs go to their stores, the rest to agents.

Records of a source topic reach agents only from the position that was sought, each once and without a gap
(`positions`). One event stands for all records of a topic that a fetch brought (`fetch`). This is pure: the consumer
in `faust_internals` fetches, seeks and hands the events to Faust.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import structlog
from faust.types import TP

from dispatchai.engine.fetch import Batch, Fetch, Record, event_record
from dispatchai.engine.metrics import EngineMetrics
from dispatchai.engine.positions import Positions, Verdict
from dispatchai.engine.snapshots import SnapshotStore
from dispatchai.engine.write_lease import Lease

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Received:
    """A fetch as Faust gets it, `events` by partition, and the partitions to `seek` again."""

    events: Mapping[TP, list[Any]]
    seek: Mapping[TP, int]


class Source:
    """The source partitions and changelogs of one application. Used from its event loop only."""

    def __init__(self, lease: Lease, metrics: EngineMetrics, stores: Callable[[], Mapping[str, SnapshotStore]]) -> None:
        """`stores` returns the store of each changelog topic."""
        self._lease = lease
        self._metrics = metrics
        self._stores = stores
        self._positions = Positions()
        self._sought: Mapping[TP, int] | None = None
        """Where partitions were sought, until agents may have their records."""
        self._seek_again: dict[TP, int] = {}
        self._handed: list[Fetch] = []
        """The events of the last fetch."""

    def revoked(self) -> None:
        """Trust no position until the next seek."""
        self._positions.revoked()

    def sought(self, offsets: Mapping[TP, int]) -> None:
        """The source partitions were sought to `offsets`. Agents get records after `open`."""
        self._sought = offsets

    def open(self) -> None:
        """Let agents have the records from the sought positions on.

        In a rebalance this waits for its end: whatever reaches the streams earlier is cleared away unnoticed.
        """
        if self._sought is not None:
            self._seek_again |= self._positions.sought(self._sought)
            self._sought = None

    def before_fetch(self, read: MutableMapping[TP, int | None]) -> Mapping[TP, int]:
        """Compare the last fetch with `read`, Faust's last offset of each partition in the streams.

        Completes `read` for the partitions of a `Fetch` that Faust does not see, and returns the partitions to seek
        again: their records did not reach the streams.
        """
        for fetch in self._handed:
            *others, last = fetch.batches
            if read[last.tp] == last.last_offset:
                for batch in others:
                    read[batch.tp] = batch.last_offset
        self._handed = []
        again, self._seek_again = self._seek_again, {}
        return again | self._positions.confirm(read)

    def receive(self, fetched: Mapping[TP, list[Record]]) -> Received:
        """Take the records of one fetch."""
        stores = self._stores()
        events: dict[TP, list[Any]] = {}
        seek: dict[TP, int] = {}
        by_topic: dict[str, list[Batch]] = {}
        for tp, records in fetched.items():
            if not records:
                continue
            if (store := stores.get(tp.topic)) is not None:
                store.load(tp.partition, records)
                events[tp] = [event_record(tp, records[-1].offset)]
            elif admitted := self._admit(tp, records, seek):
                by_topic.setdefault(tp.topic, []).append(Batch(tp, tuple(admitted)))
        self._handed = [Fetch(tuple(batches), self._lease.generation) for batches in by_topic.values()]
        for fetch in self._handed:
            last = fetch.batches[-1]
            events[last.tp] = [event_record(last.tp, last.last_offset, fetch)]
        return Received(events, seek)

    def _admit(self, tp: TP, records: list[Record], seek: dict[TP, int]) -> list[Record]:
        """Those of `records` that agents may have now; adds to `seek` if records before them were skipped."""
        admission = self._positions.admit(tp, records[0].offset, records[-1].offset)
        match admission.verdict:
            case Verdict.TAKE if admission.first_offset == records[0].offset:
                return records
            case Verdict.TAKE:
                return [record for record in records if record.offset >= admission.first_offset]
            case Verdict.DROP:
                return []
            case Verdict.SEEK:
                seek[tp] = admission.first_offset
                return []
            case Verdict.TRUNCATED:
                log.error("log_truncated", topic=tp.topic, partition=tp.partition, first_offset=admission.first_offset)
                self._metrics.logs_truncated.inc()
                return records
