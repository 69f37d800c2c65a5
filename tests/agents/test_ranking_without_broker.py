"""The ranking agent holds live entries back, loses none, and lets none follow its tombstone. Needs no broker."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from faust.types import TP
from hypothesis import given
from hypothesis import strategies as st

from agents.ranking import LIVE_APART_S, RankingAgent
from dispatchai.engine.commits import Coverage
from dispatchai.engine.errors import AssignmentOverError
from dispatchai.engine.fetch import Batch, Fetch, Record
from dispatchai.kafka.packet_history import ASSESSED_AT
from dispatchai.kafka.topics import Topic
from dispatchai.records import Assessment, AssessmentKind, Risk, RiskLevel, decode, encode
from dispatchai.triage.queue_writes import PacketWrite
from dispatchai.triage.ranking import Assessed, decode_assessed, live_call, packet, without_overtaken
from tests.support.recorded_call import assessment
from tests.support.stored_record import StoredRecord

SOURCE = TP(Topic.ASSESSMENTS, 0)
FINAL, EXPIRED = (assessment(kind) for kind in (AssessmentKind.FINAL, AssessmentKind.EXPIRED))


class Process:
    """A worker in small: what was written to which topic, in order, and how far offsets may be committed."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.coverage = Coverage()
        self.written: list[tuple[str, str, Any]] = []
        """Topic, call and decoded value of each record."""
        self.headers: list[tuple[tuple[str, bytes], ...]] = []
        """The headers of each."""
        self.dead: list[int] = []
        self.shown: list[str] = []
        self.cycles: list[int] = []
        """How many cycles of the event loop the next writes take."""
        self.over = False
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self.agent = RankingAgent(
            decode=self._decode,
            topics=self,
            store=self._store,
            dead_letter=self._dead_letter,
            coverage=self.coverage,
            on_live=self.shown.append,
            clock=lambda: self.now_s,
        )
        self._offset = 0

    async def send(
        self,
        topic: str,
        records: Mapping[int, Sequence[tuple[bytes, bytes | None]]],
        headers: Sequence[tuple[str, bytes]] = (),
    ) -> None:
        """As `FencedTopics`: one call after the other, each after a while."""
        async with self._locks[topic]:
            for _ in range(self.cycles.pop() if self.cycles else 0):
                await asyncio.sleep(0)
            if self.over:
                raise AssignmentOverError
            assert records.keys() == {SOURCE.partition}
            for key, value in records[SOURCE.partition]:
                self.written.append((topic, key.decode(), None if value is None else decode(value)))
                self.headers.append(tuple(headers))

    async def _store(self, packets: Sequence[PacketWrite]) -> None:
        for one in packets:
            assert one.partition == SOURCE.partition
            self.written.append((Topic.PACKETS, one.key.decode(), decode(one.value)))
            self.headers.append(())

    async def _decode(self, tp: TP, records: Iterable[Record]) -> list[tuple[Record, Assessed]]:
        return [(record, decode_assessed(record.value or b"")) for record in records]

    async def _dead_letter(self, tp: TP, record: Record, error: Exception) -> None:
        assert tp == SOURCE
        self.dead.append(record.offset)

    async def read(self, *assessed: tuple[str, Assessment]) -> int:
        """Read assessments, each of a call, that one fetch brought; returns the offset of the first."""
        first = self._offset
        records = [StoredRecord(first + at, call.encode(), encode(one)) for at, (call, one) in enumerate(assessed)]
        self._offset += len(records)
        await self.agent.process(Fetch((Batch(SOURCE, tuple(records)),), generation=1))
        return first

    def of(self, topic: str, call: str) -> list[Any]:
        return [value for name, key, value in self.written if (name, key) == (topic, call)]

    def live(self, call: str) -> list[Any]:
        """What was last said in each live entry of a call; None for a tombstone."""
        return [None if value is None else value.transcript for value in self.of(Topic.LIVE_CALLS, call)]


def said(text: str) -> Assessment:
    return assessment(transcript=text)


def test_a_live_assessment_that_another_follows_is_passed_over_and_no_other_is_left_out() -> None:
    kinds = [AssessmentKind.LIVE, AssessmentKind.FINAL, AssessmentKind.LIVE, AssessmentKind.LIVE]
    made = [(number, decode_assessed(encode(assessment(kind)))) for number, kind in enumerate(kinds)]
    assert without_overtaken(made) == [made[1], made[3]]
    assert without_overtaken(made[1:2]) == made[1:2]
    assert without_overtaken([]) == []


async def test_the_first_entry_is_written_at_once_and_the_next_when_it_is_due_with_its_offset_held_until_then() -> None:
    process = Process()
    await process.read(("call", said("one")))
    assert process.live("call") == ["one"]
    assert process.coverage.floor(SOURCE) is None
    held = await process.read(("call", said("two")))
    await process.read(("call", said("three")))
    await process.agent.write_due()
    assert process.live("call") == ["one"]
    assert process.coverage.floor(SOURCE) == held, "after a crash this one must be read again"
    process.now_s += LIVE_APART_S
    await process.agent.write_due()
    assert process.live("call") == ["one", "three"], "the last one that was said"
    assert process.coverage.floor(SOURCE) is None
    assert process.shown == ["call", "call"]


async def test_an_entry_that_is_held_back_while_another_is_written_keeps_its_own_offset_held() -> None:
    process = Process()
    await process.read(("call", said("one")))
    await process.read(("call", said("two")))
    process.now_s += LIVE_APART_S
    process.cycles = [3]
    writing = asyncio.ensure_future(process.agent.write_due())
    await asyncio.sleep(0)
    held = await process.read(("call", said("three")))
    assert process.coverage.floor(SOURCE) is not None
    await writing
    assert process.live("call") == ["one", "two"]
    assert process.coverage.floor(SOURCE) == held


@pytest.mark.parametrize("end", [FINAL, EXPIRED])
async def test_an_entry_that_is_held_back_when_its_call_ends_is_never_written(end: Assessment) -> None:
    process = Process()
    await process.read(("call", said("one")))
    await process.read(("call", said("two")))
    await process.read(("call", end))
    process.now_s += LIVE_APART_S
    await process.agent.write_due()
    assert process.live("call") == ["one", None]
    assert process.coverage.floor(SOURCE) is None


@pytest.mark.parametrize("cycles", [[], [0, 0, 5], [5, 5, 0]])
async def test_an_entry_that_is_due_when_its_call_ends_is_written_before_the_tombstone(cycles: list[int]) -> None:
    process = Process()
    await process.read(("call", said("one")))
    await process.read(("call", said("two")))
    process.now_s += LIVE_APART_S
    process.cycles = cycles
    writing = asyncio.ensure_future(process.agent.write_due())
    await asyncio.sleep(0)
    await process.read(("call", FINAL))
    await writing
    assert process.live("call") == ["one", "two", None]


async def test_the_packet_of_a_call_is_written_before_the_tombstone_of_its_live_entry() -> None:
    process = Process()
    await process.read(("other", said("one")), ("call", said("one")), ("call", FINAL))
    assert process.of(Topic.DISPATCH_QUEUE, "call") == [packet("call", FINAL)]
    assert process.of(Topic.LIVE_CALLS, "other") == [live_call("other", said("one"))]
    topics = [
        topic for topic, key, value in process.written if key == "call" and (topic != Topic.LIVE_CALLS or not value)
    ]
    assert topics == [Topic.PACKETS, Topic.DISPATCH_QUEUE, Topic.LIVE_CALLS]


async def test_every_version_of_a_packet_is_stored_before_it_is_in_the_queue() -> None:
    process = Process()
    second = replace(FINAL, version=FINAL.version + 2)
    await process.read(("call", FINAL), ("call", second))
    packets = [packet("call", one) for one in (FINAL, second)]
    assert process.of(Topic.PACKETS, "call") == packets
    assert process.of(Topic.DISPATCH_QUEUE, "call") == packets
    topics = [topic for topic, _, _ in process.written if topic != Topic.LIVE_CALLS]
    assert topics == [Topic.PACKETS] * 2 + [Topic.DISPATCH_QUEUE] * 2
    queued = zip(process.written, process.headers, strict=True)
    headers = [headers for (topic, _, _), headers in queued if topic == Topic.DISPATCH_QUEUE]
    assert headers == [((ASSESSED_AT, b"0"),)] * 2, "the recorded time of the assessment, as `StoredRecord` has it"


async def test_an_expired_call_makes_no_packet() -> None:
    process = Process()
    await process.read(("call", EXPIRED))
    assert process.written == [(Topic.LIVE_CALLS, "call", None)]


async def test_an_assessment_without_a_valid_entry_is_dead_lettered_and_holds_nothing() -> None:
    process = Process()
    broken = replace(said("one"), risk=Risk(RiskLevel.HIGH, 1e300))
    offset = await process.read(("call", broken), ("other", said("one")))
    assert process.dead == [offset]
    assert process.live("other") == ["one"]
    assert process.coverage.floor(SOURCE) is None


async def test_a_held_back_entry_is_dropped_with_its_assignment() -> None:
    process = Process()
    await process.read(("call", said("one")))
    await process.read(("call", said("two")))
    process.agent.reset()
    process.now_s += LIVE_APART_S
    await process.agent.write_due()
    assert process.live("call") == ["one"]
    process.over = True
    with pytest.raises(AssignmentOverError):
        await process.read(("call", said("two")))


CALLS = ("a", "b")

steps = st.lists(
    st.one_of(
        st.lists(st.tuples(st.sampled_from(CALLS), st.sampled_from(AssessmentKind)), min_size=1, max_size=4),
        st.floats(0, 2 * LIVE_APART_S),
    ),
    max_size=12,
)


@given(steps, st.lists(st.integers(0, 6), max_size=40))
def test_in_any_interleaving_no_entry_is_lost_and_none_follows_its_tombstone(
    steps: list[list[tuple[str, AssessmentKind]] | float], cycles: list[int]
) -> None:
    asyncio.run(run(steps, cycles))


async def run(steps: Sequence[list[tuple[str, AssessmentKind]] | float], cycles: list[int]) -> None:
    """Take `steps`, fetches and pauses in seconds, while due entries are written. Checks after each step."""
    process = Process()
    process.cycles = cycles
    number = 0
    last: dict[str, tuple[AssessmentKind, str]] = {}
    offsets: dict[str, int] = {}
    """Where the last live assessment of each call is stored."""

    async def keep_writing() -> None:
        while True:
            await process.agent.write_due()
            await asyncio.sleep(0)

    writing = asyncio.ensure_future(keep_writing())
    for step in steps:
        if isinstance(step, float):
            process.now_s += step
            await asyncio.sleep(0)
        else:
            fetch = []
            for call, kind in step:
                number += 1
                fetch.append((call, assessment(kind, transcript=f"{number}")))
                last[call] = (kind, f"{number}")
            first = await process.read(*fetch)
            offsets |= {call: first + at for at, (call, _) in enumerate(fetch)}
        for call, (kind, text) in last.items():
            if kind is AssessmentKind.LIVE and text not in process.live(call):
                floor = process.coverage.floor(SOURCE)
                assert floor is not None, "an entry that is not written is not held"
                assert floor <= offsets[call]
    process.now_s += LIVE_APART_S
    for _ in range(100):
        await asyncio.sleep(0)
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    for call, (kind, text) in last.items():
        expected = text if kind is AssessmentKind.LIVE else None
        assert process.live(call)[-1] == expected, "the last entry is not the last thing that was said"
        texts = [int(one) for one in process.live(call) if one is not None]
        assert texts == sorted(set(texts))
    assert process.coverage.floor(SOURCE) is None
