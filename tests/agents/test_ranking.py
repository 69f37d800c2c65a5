"""The ranking agent writes a call's live entries at a readable pace and its packet at once."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from agents import ranking
from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.topics import Topic, Topics
from dispatchai.records import AssessmentKind, Risk, RiskLevel
from dispatchai.triage.ranking import live_call, packet
from tests.support.application import (
    call_name,
    committed,
    dead_letters,
    new_group,
    produce,
    read,
    read_call,
    running,
    until,
    values,
)
from tests.support.recorded_call import assessment, event

BURST = 60


async def test_live_entries_come_at_a_readable_pace_and_a_packet_replaces_them(
    broker: KafkaConnection, topics: Topics, tmp_path: Path
) -> None:
    talking, over, gone, poison = (call_name(what) for what in ("talking", "over", "gone", "poison"))
    burst = [assessment(transcript=f"word {number}", call=talking) for number in range(BURST)]
    final = assessment(AssessmentKind.FINAL, transcript="All was said.", version=1, call=over)
    group = await new_group(broker, tmp_path, sources=[Topic.ASSESSMENTS])
    app = group.app()
    ranking.make(app)
    async with running(app):
        await until(app.is_processing)
        began = time.monotonic()
        places = await produce(broker, Topic.ASSESSMENTS, talking, burst)
        last = live_call(talking, burst[-1])
        entries = await read_call(broker, Topic.LIVE_CALLS, talking, lambda found: last in found)
        took_s = time.monotonic() - began

        no_weight = Risk(RiskLevel.HIGH, 1e300)
        broken = [
            b"no record",
            event("call.initiated", call=poison),
            replace(assessment(call=poison), risk=no_weight),
            replace(final, risk=no_weight),
        ]
        await produce(broker, Topic.ASSESSMENTS, poison, [*broken, replace(final, version=2)])
        await produce(broker, Topic.ASSESSMENTS, over, [burst[0], burst[1], burst[2], final])
        await produce(broker, Topic.ASSESSMENTS, gone, [burst[0], assessment(AssessmentKind.EXPIRED, call=gone)])
        packets = await read_call(broker, Topic.DISPATCH_QUEUE, over, bool)
        good = await read_call(broker, Topic.DISPATCH_QUEUE, poison, bool)
        stored = await read_call(broker, Topic.PACKETS, over, bool)
        dead = await dead_letters(broker, poison, len(broken))
        ends = await read(
            broker,
            Topic.LIVE_CALLS,
            [over, gone],
            lambda records: len([record for record in records if record.value is None]) >= 2,
        )
        # The held-back entry of another call is written after all that was held back of these two.
        await produce(broker, Topic.ASSESSMENTS, talking, [burst[0], burst[1]])
        await read_call(broker, Topic.LIVE_CALLS, talking, lambda found: found[-1:] == [live_call(talking, burst[1])])
        ends = await read(broker, Topic.LIVE_CALLS, [over, gone], lambda records: len(records) >= len(ends))
        # A packet behind the expiry: any record that the expiry had made would be before it.
        await produce(broker, Topic.ASSESSMENTS, gone, [final])
        of_gone = await read_call(broker, Topic.DISPATCH_QUEUE, gone, bool)

    assert entries[-1] == last, "the last words are not shown"
    assert len(entries) <= 1 + took_s / ranking.LIVE_APART_S, "more than four entries a second"
    assert [entry.transcript for entry in entries] == sorted(
        (entry.transcript for entry in entries), key=lambda text: int(text.split()[1])
    )

    assert packets == [packet(over, final)]
    assert stored == packets
    assert of_gone == [packet(gone, final)], "an expiry made a packet"
    for call in (over, gone):
        of_call = values([record for record in ends if record.key == call.encode()])
        assert of_call.count(None) == 1
        assert of_call[-1] is None, "an entry came back after the call was over"

    assert {letter.value for letter in dead[:1]} == {b"no record"}
    assert len(dead) == len(broken)
    assert {dict(letter.headers)["reader"] for letter in dead} == {ranking.NAME.encode()}
    assert [value.version for value in good] == [2], "a broken record stopped the packet behind it"

    assert await committed(group, places[-1]) > places[-1].offset
