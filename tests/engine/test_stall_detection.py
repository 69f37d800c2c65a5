"""A partition with records to read is stuck when none is processed for too long; nothing else is."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Mapping
from pathlib import Path

import pytest
from faust.types import TP
from structlog.testing import capture_logs

from dispatchai.engine import agent
from dispatchai.engine.app import App, create_app, run_app
from dispatchai.engine.errors import StalledError
from dispatchai.engine.fetch import Batch
from dispatchai.engine.stall_detection import StallDetector
from dispatchai.kafka import readiness
from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.embedded_broker import free_port
from dispatchai.kafka.topics import Topic
from tests.engine.test_app import PARTITIONS, PATIENCE_S, Names, make_states, make_topics, new_names, produce, until

LIMIT_S = 30.0
CHECK_S = 5.0
FRAMES = TP("frames", 3)
EVENTS = TP("events", 3)


class Clocked:
    """A watch, looked at every CHECK_S by a clock that the test holds."""

    def __init__(self, *partitions: TP) -> None:
        self.detector = StallDetector(LIMIT_S)
        self.detector.reads("signals", ["frames"])
        self.detector.reads("speech", ["frames", "events"])
        self.detector.begin(dict.fromkeys(partitions, 100))
        self.now_s = 1000.0

    def check(self, ends: Mapping[TP, int] | None, *, seconds: float = CHECK_S) -> StalledError | None:
        """What a look finds that comes `seconds` after the last."""
        self.now_s += seconds
        return self.detector.check(self.now_s, ends)

    def looks(self, ends: Mapping[TP, int] | None, seconds: float) -> StalledError | None:
        """What is found first within `seconds`."""
        found = [self.check(ends) for _ in range(int(seconds / CHECK_S))]
        return next((stuck for stuck in found if stuck), None)


def test_a_partition_whose_records_nobody_processes_is_stuck_after_the_limit() -> None:
    clocked = Clocked(FRAMES)
    assert clocked.check({FRAMES: 220}) is None
    assert clocked.looks({FRAMES: 220}, LIMIT_S - CHECK_S) is None
    stuck = clocked.check({FRAMES: 220})
    assert str(stuck) == "agent signals is stalled at frames/3: 120 records wait, none was processed for 30 s"


def test_a_partition_is_idle_from_the_first_look_that_finds_all_of_it_processed_by_everyone() -> None:
    clocked = Clocked(FRAMES)
    assert clocked.detector.idle_s(FRAMES) == 0.0
    clocked.check({FRAMES: 100})
    assert clocked.detector.idle_s(FRAMES) == 0.0, "what came before this look may just have been processed"
    clocked.looks({FRAMES: 100}, 2 * CHECK_S)
    assert clocked.detector.idle_s(FRAMES) == 2 * CHECK_S
    clocked.check(None)
    assert clocked.detector.idle_s(FRAMES) == 0.0, "nobody knows what a Kafka has that does not answer"
    clocked.looks({FRAMES: 100}, 2 * CHECK_S)
    assert clocked.detector.idle_s(FRAMES) == CHECK_S
    for agent_name in ("signals", "speech"):
        clocked.check({FRAMES: 110})
        assert clocked.detector.idle_s(FRAMES) == 0.0
        clocked.detector.processed(agent_name, FRAMES, 110)
    clocked.looks({FRAMES: 110}, 3 * CHECK_S)
    assert clocked.detector.idle_s(FRAMES) == CHECK_S
    assert clocked.detector.idle_s(EVENTS) == 0.0, "not assigned"


def test_a_partition_without_traffic_is_not_stuck() -> None:
    clocked = Clocked(FRAMES, EVENTS)
    assert clocked.looks({FRAMES: 100, EVENTS: 100}, 100 * LIMIT_S) is None


def test_a_partition_that_is_far_behind_but_moves_is_not_stuck() -> None:
    clocked = Clocked(EVENTS)
    for offset in range(101, 150):
        clocked.detector.processed("speech", EVENTS, offset)
        assert clocked.check({EVENTS: 1_000_000}) is None


def test_one_agent_that_stands_still_is_found_beside_another_that_moves() -> None:
    clocked = Clocked(FRAMES)
    for offset in range(101, 106):
        clocked.detector.processed("signals", FRAMES, offset)
        assert clocked.check({FRAMES: 1_000}) is None
    for offset in range(106, 113):
        clocked.detector.processed("signals", FRAMES, offset)
        stuck = clocked.check({FRAMES: 1_000})
    assert str(stuck).startswith("agent speech is stalled at frames/3: 900 records wait")


def test_no_time_counts_while_kafka_does_not_answer() -> None:
    clocked = Clocked(FRAMES)
    assert clocked.looks({FRAMES: 220}, LIMIT_S - CHECK_S) is None
    assert clocked.looks(None, 100 * LIMIT_S) is None
    assert not clocked.detector.kafka_reachable
    assert clocked.looks({FRAMES: 220}, LIMIT_S - CHECK_S) is None
    assert clocked.detector.kafka_reachable
    assert clocked.check({FRAMES: 220}) is not None


def test_the_time_for_which_the_process_was_frozen_does_not_count() -> None:
    clocked = Clocked(FRAMES)
    clocked.check({FRAMES: 220})
    assert clocked.check({FRAMES: 220}, seconds=3600.0) is None
    assert clocked.check({FRAMES: 220}) is None


def test_an_agent_that_waits_for_what_has_limits_of_its_own_is_excused() -> None:
    clocked = Clocked(EVENTS)
    with clocked.detector.excused("speech"):
        assert clocked.looks({EVENTS: 220}, 10 * LIMIT_S) is None
    assert clocked.looks({EVENTS: 220}, LIMIT_S) is not None


def test_an_assignment_begins_anew_and_what_was_revoked_is_not_watched() -> None:
    clocked = Clocked(FRAMES)
    clocked.looks({FRAMES: 220}, LIMIT_S - CHECK_S)
    clocked.detector.revoked()
    assert clocked.looks({}, LIMIT_S) is None
    clocked.detector.begin({FRAMES: 150})
    clocked.detector.processed("signals", EVENTS, 7)  # a batch of the assignment before
    assert clocked.detector.partitions() == [FRAMES]
    assert clocked.detector.next_offset(FRAMES) == 150
    assert clocked.looks({FRAMES: 220}, LIMIT_S - CHECK_S) is None


def make_stuck_app(broker: KafkaConnection, names: Names, folder: Path) -> App:
    """An application whose agent never comes back from the key `poison`, and has two seconds for it."""
    app = create_app(
        names.app,
        broker,
        dead_letter_topic=Topic.DEAD_LETTERS,
        partitions=PARTITIONS,
        web_host="127.0.0.1",
        web_port=free_port(),
        data_dir=folder,
        stall_limit_s=2.0,
    )
    make_states(app)

    async def process(batch: Batch) -> None:
        if any(record.key == b"poison" for record in batch.records):
            await asyncio.Event().wait()

    agent.run_batches(app, "sums", [names.source], process)
    return app


def test_a_process_that_gets_no_partitions_is_stuck_and_one_that_needs_none_is_not() -> None:
    detector = StallDetector(limit_s=30.0)
    stuck = [detector.check(5.0 * number, {}) for number in range(1, 20)]
    assert stuck[0] is None
    assert any(isinstance(error, StalledError) for error in stuck)
    spare = StallDetector(limit_s=30.0)
    spare.begin({})
    assert not any(spare.check(5.0 * number, {}) for number in range(1, 20))
    away = StallDetector(limit_s=30.0)
    assert not any(away.check(5.0 * number, None) for number in range(1, 20))


async def test_a_process_is_not_ready_while_a_topic_that_it_reads_does_not_exist(
    broker: KafkaConnection, tmp_path: Path
) -> None:
    if broker.embedded:
        pytest.skip("the embedded broker creates a topic that it is asked for")
    names = new_names()
    app = make_stuck_app(broker, names, tmp_path)
    running = asyncio.create_task(run_app(app))
    try:
        await until(lambda: app.checks["kafka"]() and app.is_processing())
        assert not app.checks["topics"]()
        assert app.details() == {"missing_topics": [names.source]}
        await make_topics(broker, names)
        await until(lambda: all(holds() for holds in app.checks.values()))
        assert app.details() == {}
    finally:
        signal.raise_signal(signal.SIGTERM)
        await running


def test_a_process_without_partitions_misses_no_topic_that_exists() -> None:
    spare = Clocked()
    assert not list(spare.detector.missing_topics), "Kafka has not been asked"
    spare.detector.found({"frames", "events", "others"})
    assert not list(spare.detector.missing_topics)
    spare.detector.found({"frames"})
    assert list(spare.detector.missing_topics) == ["events"]


async def test_an_agent_that_hangs_ends_the_process_with_one_line_that_names_the_partition(
    broker: KafkaConnection, tmp_path: Path
) -> None:
    names = await make_topics(broker)
    app = make_stuck_app(broker, names, tmp_path)
    await produce(broker, names.source, [("poison", b"1"), ("poison", b"2")])
    with capture_logs() as logs:
        async with asyncio.timeout(PATIENCE_S):
            assert await run_app(app) == 1
    assert not app.checks["running"]()
    (line,) = [line for line in logs if "stalled" in str(line)]
    assert line["log_level"] == "error"
    assert f"agent sums is stalled at {names.source}/" in line["error"]


async def test_a_process_that_finds_no_kafka_waits_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "LOG_EVERY_S", 0.0)
    nobody = KafkaConnection(f"127.0.0.1:{free_port()}", embedded=True)
    app = make_stuck_app(nobody, Names("test-nobody", "source", "sink"), tmp_path)
    with capture_logs() as logs:
        ending = asyncio.create_task(run_app(app))
        await until(lambda: sum(line["event"] == "kafka_unreachable" for line in logs) > 2)
        assert not ending.done()
        signal.raise_signal(signal.SIGTERM)
        assert await ending == 0


def test_an_outage_of_kafka_is_one_line_when_it_begins_and_one_when_it_ends() -> None:
    detector = StallDetector(limit_s=30.0)
    with capture_logs() as logs:
        for second, answers in enumerate([True, True, False, False, False, True, True, False]):
            detector.check(100.0 + 5 * second, {} if answers else None)
    assert [line["event"] for line in logs] == ["kafka_unreachable", "kafka_reachable", "kafka_unreachable"]
