"""Snapshots of states, as a table's changelog holds them, and which snapshot of a key counts.

Each snapshot carries the epoch of its writer, a number that grows with every new owner of a partition. An expelled
process that does not know it yet (a zombie) may write an old state after a newer one. On recovery the snapshot of the
highest epoch counts, and among those of one epoch the last. If it is not the last in the log, it is written again,
because compaction would keep the last one; so it is when an old one arrives later (`late_writes`).

Pure: `checkpoint` decides when snapshots are written, `keyed_state` and `columnar_state` what is in them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set
from typing import Any, Final

import structlog

from dispatchai.kafka.headers import number_in
from dispatchai.process.log_limit import LogLimit

log = structlog.get_logger(__name__)

EPOCH: Final = "epoch"
"""Header of a snapshot and of every other record of a compacted topic: its writer's epoch, as decimal digits."""

EPOCH_MAX: Final = 2**31 - 1
"""The highest epoch. Generations, which epochs follow, are numbers of 32 bits. A record that claims a higher one is
none of this program's. A record that claims this one ends the fencing of its partition and nothing else: every owner
has this epoch then, and among records of one epoch the last counts."""


def epoch_of(headers: Iterable[tuple[str, bytes | None]]) -> int:
    """The epoch of a record's writer; 0 if the header is missing or is no epoch."""
    for name, value in headers:
        if name == EPOCH and (epoch := number_in(value, EPOCH_MAX)) is not None:
            return epoch
    return 0


def key_of(record: Any) -> str | None:
    """The key of a record; None if it has none, or one that this program does not write."""
    try:
        return record.key.decode() if record.key else None
    except UnicodeDecodeError:
        return None


class SnapshotStore:
    """The last snapshot of each key of one table, in memory. Keys are str, values bytes."""

    def __init__(self, name: str, generation: Callable[[], int]) -> None:
        """`generation` returns the consumer group's generation whose assignment this process follows."""
        self.name = name
        self._generation = generation
        self._values: dict[str, bytes] = {}
        self._partition_of: dict[str, int] = {}
        self._epochs: dict[int, dict[str, int]] = {}
        """Epoch of the snapshot that counts, of each key that was recovered, by partition."""
        self._highest: dict[int, int] = {}
        """Highest epoch in each partition's changelog."""
        self._overwritten: dict[int, set[str]] = {}
        """Keys whose last record in the changelog is not the one that counts, by partition."""
        self._loaded: dict[int, int] = {}
        """Offset up to which each partition's changelog was read."""
        self._keyless_log = LogLimit()

    @property
    def values(self) -> Mapping[str, bytes]:
        """The last snapshot of each key."""
        return self._values

    def partition_of(self, key: str) -> int | None:
        """The partition of a stored key, or None."""
        return self._partition_of.get(key)

    def put(self, key: str, value: bytes | None, partition: int) -> None:
        """Set or (None) delete the local copy. The caller writes the changelog."""
        self._overwritten.get(partition, set()).discard(key)
        if value is None:
            self._values.pop(key, None)
            self._partition_of.pop(key, None)
        else:
            self._values[key] = value
            self._partition_of[key] = partition

    def load(self, partition: int, records: Iterable[Any]) -> None:
        """Recover from `records` of the changelog (aiokafka's), in the order of their offsets."""
        epochs = self._epochs.setdefault(partition, {})
        highest = self._highest.get(partition, 0)
        stale: set[str] = set()
        for record in records:
            self._loaded[partition] = record.offset + 1
            if (key := key_of(record)) is None:
                if count := self._keyless_log.add():
                    log.warning(
                        "snapshot_without_key",
                        table=self.name,
                        partition=partition,
                        offset=record.offset,
                        snapshots=count,
                    )
                continue
            epoch = epoch_of(record.headers)
            if self.is_fenced(epoch, epochs.get(key, 0)):
                stale.add(key)
                continue
            stale.discard(key)
            epochs[key] = epoch
            highest = max(highest, epoch)
            self.put(key, record.value, partition)
        self._highest[partition] = highest
        if stale:
            self._mark_overwritten(partition, stale)

    def is_fenced(self, epoch: int, known: int) -> bool:
        """Whether a snapshot of `epoch` is an earlier owner's that arrived after one of epoch `known`."""
        return epoch < known

    def follow(self, partition: int, records: Iterable[Any]) -> bool:
        """Check `records` written after recovery. Returns whether one of them is not this process's.

        To be called while this process may write. It wrote all records of its own epoch, and holds the snapshots that
        count. A later owner begins when this process may not write any more; so a record of a higher epoch is nobody's.
        It would count at the next recovery: this process goes on above it.
        """
        epoch, highest, stale = self.epoch(partition), 0, set[str]()
        for record in records:
            of_record = epoch_of(record.headers)
            if of_record != epoch and (key := key_of(record)) is not None:
                stale.add(key)
                highest = max(highest, of_record)
        if highest > epoch:
            log.warning("epoch_ahead", table=self.name, partition=partition, epoch=highest, own=epoch)
            self._highest[partition] = max(self._highest.get(partition, 0), highest)
        if stale:
            self._mark_overwritten(partition, stale)
        return bool(stale)

    def _mark_overwritten(self, partition: int, keys: set[str]) -> None:
        self._overwritten.setdefault(partition, set()).update(keys)
        log.warning("snapshots_overwritten", table=self.name, partition=partition, keys=len(keys))

    def loaded(self, partition: int) -> int:
        """The offset after the last changelog record that was loaded; 0 before the first."""
        return self._loaded.get(partition, 0)

    def keep(self, partitions: Set[int]) -> None:
        """Discard all partitions but these. The others are recovered from the beginning of their changelogs, or are not
        this process's any more: then what is to be written again there is their owner's business."""
        known = {*self._epochs, *self._highest, *self._overwritten, *self._loaded, *self._partition_of.values()}
        for partition in known - partitions:
            self.drop(partition)

    def drop(self, partition: int) -> None:
        """Discard a partition that will be recovered from the beginning of its changelog."""
        self._epochs.pop(partition, None)
        self._highest.pop(partition, None)
        self._overwritten.pop(partition, None)
        self._loaded.pop(partition, None)
        for key in [key for key, number in self._partition_of.items() if number == partition]:
            self.put(key, None, partition)

    def epoch(self, partition: int) -> int:
        """The epoch of this process's snapshots of `partition`: above that of every earlier owner.

        The group's generation grows with every owner and would do, but Kafka forgets it when a group was away for a
        week. The highest epoch in the log grows too, but an owner that wrote nothing left none. So the higher counts.
        """
        return min(max(self._generation(), self._highest.get(partition, 0) + 1), EPOCH_MAX)

    @property
    def overwritten(self) -> dict[int, list[str]]:
        """Keys whose last record in the changelog is not the one that counts, by partition."""
        return {partition: sorted(keys) for partition, keys in self._overwritten.items() if keys}

    def recovered(self) -> None:
        """All changelogs were loaded: the epochs of deleted keys are not needed any more."""
        for partition, epochs in self._epochs.items():
            self._epochs[partition] = {key: epoch for key, epoch in epochs.items() if key in self._values}
