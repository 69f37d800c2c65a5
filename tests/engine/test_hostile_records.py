"""No header, key or value of a record ends a process or its recovery, and none keeps the owner from being counted."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import aiokafka
import pytest
from structlog.testing import capture_logs

from dispatchai.engine.commits import Coverage
from dispatchai.engine.emitter import Emitter
from dispatchai.engine.keyed_state import KeyedStates
from dispatchai.engine.late_writes import Standing, standings
from dispatchai.engine.snapshots import EPOCH, EPOCH_MAX, SnapshotStore, epoch_of, key_of

GENERATION = 7


@dataclass(frozen=True, slots=True)
class Written:
    """A record as it is read."""

    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()
    offset: int = 0
    timestamp: int = 0


def written(key: bytes | None, value: bytes | None, epoch: Any = None) -> Written:
    return Written(key, value, () if epoch is None else ((EPOCH, str(epoch).encode()),))


@pytest.fixture
def table() -> SnapshotStore:
    return SnapshotStore("sums", lambda: GENERATION)


@pytest.mark.parametrize("text", [b"9" * 5_000, b"-1", b"", b"1e9", b"\xd9\xa1", None, str(EPOCH_MAX + 1).encode()])
def test_a_header_that_is_no_epoch_counts_as_none(text: bytes | None) -> None:
    assert epoch_of([(EPOCH, text)]) == 0
    assert epoch_of([(EPOCH, text), ("other", b"1"), (EPOCH, b"5")]) in (0, 5)


def test_a_recovery_skips_keys_that_this_program_does_not_write(table: SnapshotStore) -> None:
    table.load(0, [written(None, b"1", 5), written(b"\xff", b"1", 5), written(b"", b"1"), written(b"call", b"2", 5)])
    assert dict(table.values) == {"call": b"2"}
    assert not table.follow(0, [written(None, b"1", 1), written(b"\xff", b"1", 1)])
    assert key_of(written(b"\xff", b"")) is None


def test_an_epoch_far_ahead_does_not_fence_out_the_owner(table: SnapshotStore) -> None:
    table.load(0, [written(b"call", b"1", 5)])
    table.put("call", b"2", 0)
    assert table.follow(0, [written(b"call", b"forged", 1_000_000)])
    assert table.epoch(0) > 1_000_000, "the owner goes on above it"
    assert table.overwritten == {0: ["call"]}
    assert table.values["call"] == b"2"
    log = [written(b"call", b"forged", 1_000_000), written(b"call", b"2", table.epoch(0))]
    later = SnapshotStore("sums", lambda: GENERATION + 1)
    later.load(0, log)
    assert later.values["call"] == b"2"


def test_the_highest_epoch_of_all_does_not_fence_out_the_owner(table: SnapshotStore) -> None:
    table.load(0, [written(b"call", b"forged", EPOCH_MAX)])
    assert table.epoch(0) == EPOCH_MAX
    later = SnapshotStore("sums", lambda: GENERATION + 1)
    later.load(0, [written(b"call", b"forged", EPOCH_MAX), written(b"call", b"2", table.epoch(0))])
    assert later.values["call"] == b"2"


def test_an_output_that_claims_a_later_owner_does_not_count() -> None:
    known: dict[bytes, Standing] = {}
    records = [written(b"call", b"right", 5), written(b"call", b"forged", 999)]
    standings(records, {b"call"}, known, own=6)
    assert known[b"call"].value == b"right"
    assert known[b"call"].overwritten


async def test_one_snapshot_that_cannot_be_decoded_does_not_hide_the_others(table: SnapshotStore) -> None:
    states = KeyedStates("sums", table, Coverage(), encode=lambda state: b"%d" % state, decode=int)
    table.load(0, [written(b"bad", b"what?"), written(b"good", b"4")])
    assert list(states) == [("good", 4)]
    assert dict(states.match(lambda state: state == 4)) == {"good": True, "bad": False}
    with pytest.raises(ValueError, match="invalid literal"):
        states.get("bad")


async def test_records_that_nobody_can_process_fill_no_log(
    table: SnapshotStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counter[str]()
    unused: Any = None

    class Metrics:
        def dead_letter(self, reader: str, error: Exception) -> None:
            counted[reader] += 1

    metrics: Any = Metrics()
    emitter = Emitter(
        unused, lease=unused, failure=unused, metrics=metrics, dead_letter_topic="dead-letters", on_dropped=unused
    )
    sent = []

    async def send(*record: Any, **options: Any) -> None:
        sent.append(record)

    monkeypatch.setattr(emitter, "send", send)
    with capture_logs() as lines:
        for offset in range(2_000):
            record = aiokafka.ConsumerRecord("source", 0, offset, 0, 0, b"call", b"x", None, 0, 0, ())
            for reader in ("calls", "triage"):
                await emitter.dead_letter(record, reader=reader, error=ValueError(f"number {offset}"))
        table.load(0, [written(None, b"1", 5)] * 2_000)
    assert counted == {"calls": 2_000, "triage": 2_000}
    assert len(sent) == 4_000
    assert {line["event"] for line in lines} == {"dead_letter", "snapshot_without_key"}
    assert len(lines) < 100
