"""The Faust transport `dispatchai://`: one event for many records, and commits that wait for what is owed.

Faust pays about 100 µs for each event before an agent sees it. So this transport hands an agent all records of a
partition that one fetch brought as one event, a `Batch`; the price is then paid once per fetch and partition.
Changelogs are left as they are: Faust's recovery reads them record by record.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import aiokafka
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from dispatchai.engine.logs import FAUST_LOG

FETCH_MAX_WAIT_MS = 20
"""How long the broker may hold a fetch back to fill it: one frame's time. Fewer polls, and lower latency than 0."""

FETCH_MIN_BYTES = 131_072
"""A fetch returns sooner when this much is there: about 350 frame records."""


@dataclass(frozen=True, slots=True)
class Batch:
    """The records of one partition that one fetch brought, in the order of their offsets; never empty."""

    tp: TP
    records: tuple[aiokafka.ConsumerRecord, ...]

    @property
    def first_offset(self) -> int:
        """Offset of the first record."""
        return int(self.records[0].offset)

    def by_key(self) -> Iterator[tuple[bytes | None, list[aiokafka.ConsumerRecord]]]:
        """The records of each key, in their order; keys in the order of their first record."""
        groups: dict[bytes | None, list[aiokafka.ConsumerRecord]] = {}
        for record in self.records:
            groups.setdefault(record.key, []).append(record)
        return iter(groups.items())


def _as_one(tp: TP, records: list[aiokafka.ConsumerRecord]) -> aiokafka.ConsumerRecord:
    """One record at the offset of the last of `records`, whose value is the `Batch` of all."""
    last = records[-1]
    return aiokafka.ConsumerRecord(
        topic=last.topic,
        partition=last.partition,
        offset=last.offset,
        timestamp=last.timestamp,
        timestamp_type=last.timestamp_type,
        key=None,
        value=Batch(tp, tuple(records)),
        checksum=None,
        serialized_key_size=0,
        serialized_value_size=0,
        headers=(),
    )


class ConsumerThread(driver.AIOKafkaConsumerThread):
    """Faust's consumer thread with a fetch that waits as long as a frame, which Faust has no setting for."""

    logger = FAUST_LOG

    def _create_worker_consumer(self, transport: driver.Transport) -> aiokafka.AIOKafkaConsumer:
        consumer = super()._create_worker_consumer(transport)
        consumer._fetch_max_wait_ms = FETCH_MAX_WAIT_MS
        consumer._fetch_min_bytes = FETCH_MIN_BYTES
        return consumer


class Consumer(driver.Consumer):
    """Faust's consumer that reads batches and commits no further than `app.coverage` allows."""

    logger = FAUST_LOG

    def _new_consumer_thread(self) -> ConsumerThread:
        return ConsumerThread(self, loop=self.loop, beacon=self.beacon)

    async def _getmany(self, active_partitions: set[TP] | None, timeout: float) -> Mapping[TP, list[Any]]:  # noqa: ASYNC109
        fetched = await super()._getmany(active_partitions, timeout)
        changelogs = self.app.tables.changelog_topics
        return {
            tp: records if tp.topic in changelogs or not records else [_as_one(tp, records)]
            for tp, records in fetched.items()
        }

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        """Nothing: a batch ends at its last offset, so Faust would take every batch for a gap in the log."""

    def _new_offset(self, tp: TP) -> int | None:
        """The offset to commit: behind the last acknowledged batch, but not beyond what is owed.

        A partition's batches are acknowledged in their order, as each agent handles its stream in order and a
        batch counts as acknowledged when the last of its agents is done with it. So the highest will do.
        """
        acknowledged = self._acked[tp]
        if not acknowledged:
            return None
        highest = max(acknowledged)
        floor = self.app.coverage.floor(tp)
        if floor is not None and floor <= highest:
            # What is kept makes the next commit look at this partition again, though nothing new may have come.
            acknowledged[:] = [highest]
            return floor
        acknowledged.clear()
        self._acked_index[tp].clear()
        return highest + 1


class Producer(driver.Producer):
    """Faust's producer, idempotent where the broker can: a retried request neither doubles nor reorders records."""

    logger = FAUST_LOG

    def _settings_extra(self) -> Mapping[str, Any]:
        return {**super()._settings_extra(), "enable_idempotence": self.app.idempotent_producer}


class Transport(driver.Transport):
    """Registered for the scheme `dispatchai` under the entry points `faust.transports`."""

    Consumer: ClassVar[type[Consumer]] = Consumer
    Producer: ClassVar[type[Producer]] = Producer
