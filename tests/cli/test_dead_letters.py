"""`dispatchai dead-letters`: what an operator sees, what stays hidden, and that a retry asks first and reports."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import uuid
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import aiokafka
import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from hypothesis import given
from hypothesis import strategies as st

from dispatchai.cli import dead_letters
from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.dead_letter_store import RETRY_AT_ONCE, FailedRecord, Failure
from dispatchai.kafka.dead_letters import DeadLetter, Place, dead_letter_of, parse_dead_letter
from dispatchai.kafka.embedded_broker import free_port
from dispatchai.kafka.topics import Topic, Topics
from dispatchai.records import AssessmentKind, DecodeError, Record, decode, encode
from tests.records.examples import RECORD_NAMES, example, record_class
from tests.support.recorded_call import assessment, event, utterance

NUMBER = "+15550101234"
SAID = "My husband has collapsed at 42 Garden Street."
WRITTEN_MS = 1_795_000_000_000

FAILED = DecodeError("broken CallEvent: EOFError")


def raw(value: bytes | None, *, topic: str, offset: int = 7, key: bytes | None = b"call-1") -> aiokafka.ConsumerRecord:
    return aiokafka.ConsumerRecord(topic, 0, offset, WRITTEN_MS, 0, key, value, None, 0, 0, (("trace", b"abc"),))


def dead_letter(value: bytes | None, *, topic: str = "call-events", error: Exception = FAILED) -> DeadLetter:
    key, kept, headers = dead_letter_of(raw(value, topic=topic), reader="calls", error=error)
    record = aiokafka.ConsumerRecord(Topic.DEAD_LETTERS, 0, 3, WRITTEN_MS, 0, key, kept, None, 0, 0, tuple(headers))
    read = parse_dead_letter(record)
    assert isinstance(read, DeadLetter)
    return read


def shown(one: DeadLetter, *, content: bool) -> str:
    record = FailedRecord(one.first, None, is_record=True)
    record.add(one)
    text = dead_letters.render_record(record, one, content=content)
    as_json = dead_letters.record_as_json(record, content=content) | dead_letters.value_as_json(one, content=content)
    return text + json.dumps(as_json)


# -- what is shown


def of_a_caller() -> list[Record]:
    said = utterance(1, SAID)
    return [
        replace(event("call.initiated", call="call-1"), payload=SAID.encode(), from_number=NUMBER),
        replace(said, words=()),
        assessment(transcript=SAID),
        *(example(record_class(name)) for name in RECORD_NAMES),
    ]


@pytest.mark.parametrize("record", of_a_caller(), ids=lambda record: type(record).__name__)
def test_what_a_caller_said_and_the_whole_number_are_shown_on_demand_alone(record: Record) -> None:
    one = dead_letter(encode(record))
    hidden, full = shown(one, content=False), shown(one, content=True)
    assert SAID not in hidden
    assert NUMBER not in hidden
    assert type(record).__name__ in hidden
    for name in ("from_number", "to_number"):
        if number := getattr(record, name, None):
            assert number not in hidden
            assert f"•{number[-3:]}" in hidden
            assert number in full
    # Texts of the made-up examples begin with the name of their field.
    for name in ("text", "summary", "transcript", "partial", "quote", "note"):
        assert f"{name} é" not in hidden, name


def test_with_content_all_of_it_is_shown() -> None:
    full = shown(dead_letter(encode(replace(event("call.initiated"), payload=SAID.encode()))), content=True)
    assert SAID in full
    assert "trace: abc" in full


@pytest.mark.parametrize("value", [SAID.encode(), b"\xc3\x01" + b"12345678" + SAID.encode(), SAID.encode() * 1000])
def test_bytes_that_are_no_record_are_dumped_on_demand_alone_and_no_more_than_some(value: bytes) -> None:
    one = dead_letter(value)
    hidden, full = shown(one, content=False), shown(one, content=True)
    assert "My husband" not in hidden
    assert SAID.encode().hex()[:40] not in hidden
    assert str(len(value)) in hidden
    assert "My hus" in full, "the dump has the text beside the bytes"
    assert len(full) < 10_000


def test_a_schema_of_another_version_is_named() -> None:
    assert "schema fingerprint 3132333435363738" in shown(dead_letter(b"\xc3\x01" + b"12345678" + b"x"), content=False)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (FAILED, "DecodeError: broken CallEvent: EOFError"),
        (RuntimeError(SAID), "RuntimeError"),
        (KeyError(NUMBER), "KeyError"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "invalid start byte"),
    ],
)
def test_an_error_is_shown_without_what_it_may_repeat_of_the_call(error: Exception, says: str) -> None:
    hidden = shown(dead_letter(b"x", error=error), content=False)
    assert says in hidden
    assert SAID not in hidden
    assert NUMBER not in hidden


@given(st.binary(max_size=100) | st.none())
def test_a_key_of_any_kind_is_one_line_and_no_number(key: bytes | None) -> None:
    shown_key = dead_letters.render_key(key)
    assert shown_key.isprintable()
    assert len(shown_key) < 120


@pytest.mark.parametrize("key", [NUMBER, NUMBER[1:]])
def test_a_key_that_may_be_a_number_is_masked(key: str) -> None:
    assert dead_letters.render_key(key.encode()) == "•234"


def test_what_a_poison_record_holds_does_not_steer_the_terminal() -> None:
    evil = "\x1b[2J\x1b]0;title\x07"
    one = dead_letter(evil.encode(), error=DecodeError(evil))
    record = FailedRecord(one.first, evil.encode(), is_record=True)
    record.failures[1, "calls"] = Failure("calls", 1, f"DecodeError: {evil}", WRITTEN_MS)
    for text in (dead_letters.render_list([record]), dead_letters.render_record(record, one, content=True)):
        assert "\x1b" not in text
        assert "\x07" not in text


def test_an_old_value_of_a_view_and_a_live_assessment_are_not_sent_again() -> None:
    refusals = dead_letters.Refusals.load(named=False)
    final = replace(assessment(), kind=AssessmentKind.FINAL)
    assert "compacted" in (refusals(dead_letter(b"x", topic="dispatch-queue")) or "")
    assert "live assessment" in (refusals(dead_letter(encode(assessment()), topic="assessments")) or "")
    assert refusals(dead_letter(encode(final), topic="assessments")) is None
    assert refusals(dead_letter(b"x", topic="call-events")) is None


def test_a_command_to_the_carrier_is_not_sent_again_unless_it_is_named() -> None:
    command = dead_letter(b"x", topic="dispatch-actions")
    assert "if it is named" in (dead_letters.Refusals.load(named=False)(command) or "")
    assert dead_letters.Refusals.load(named=True)(command) is None


@pytest.mark.parametrize(
    ("text", "before_ms"),
    [("90m", 5_400_000), ("2h", 7_200_000), ("7d", 604_800_000), ("30s", 30_000)],
)
def test_a_time_is_a_duration_before_now(text: str, before_ms: int) -> None:
    assert dead_letters.moment_ms(text, WRITTEN_MS) == WRITTEN_MS - before_ms


def test_a_time_without_a_zone_is_utc() -> None:
    assert dead_letters.moment_ms("2026-01-31T08:00", 0) == dead_letters.moment_ms("2026-01-31T09:00+01:00", 0)
    with pytest.raises(ValueError, match="90m, 2h, 7d"):
        dead_letters.moment_ms("yesterday", 0)


# -- the command


@dataclass(frozen=True, slots=True)
class Left:
    """Dead letters of one test, about records of a topic of its own."""

    broker: KafkaConnection
    folder: Path
    topic: str

    async def run(self, *arguments: str) -> tuple[int | None, str, str]:
        """Exit code, output and errors of `dispatchai dead-letters` with `arguments`."""
        process = await self.start(*arguments)
        async with asyncio.timeout(100):
            out, err = await process.communicate()
        assert "Traceback" not in err.decode(), err.decode()
        return process.returncode, out.decode(), err.decode()

    async def start(self, *arguments: str) -> asyncio.subprocess.Process:
        """`dispatchai dead-letters` with `arguments`, and nobody to ask."""
        environment = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG")}
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "dispatchai", "dead-letters", *arguments),
            cwd=self.folder,
            env={
                **environment,
                "KAFKA_BOOTSTRAP_SERVERS": self.broker.bootstrap_servers,
                "KAFKA_IS_EMBEDDED": str(self.broker.embedded).lower(),
            },
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )


@pytest.fixture
async def left(broker: KafkaConnection, topics: Topics, tmp_path: Path) -> Left:
    """Two readers' dead letters for a broken event, and one for a good one. Both are in their topic."""
    topic = f"origin-{uuid.uuid4().hex[:8]}"
    admin = AIOKafkaAdminClient(**broker.client_options())
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, 1, 1)])
    finally:
        await admin.close()
    broken = raw(b"not a record of this project", topic=topic, offset=1)
    good = raw(encode(event("call.answered", call="call-1")), topic=topic, offset=2)
    async with aiokafka.AIOKafkaProducer(**broker.producer_options()) as producer:
        for one in (raw(b"sound", topic=topic, offset=0), broken, good):
            await store(producer, one)
        for one, reader, error in (
            (broken, "calls", FAILED),
            (broken, "triage", FAILED),
            (good, "triage", RuntimeError(SAID)),
        ):
            key, value, headers = dead_letter_of(one, reader=reader, error=error)
            await producer.send_and_wait(Topic.DEAD_LETTERS, value, key=key, headers=headers)
    return Left(broker, tmp_path, topic)


async def store(producer: aiokafka.AIOKafkaProducer, one: aiokafka.ConsumerRecord) -> None:
    """Write the record `one` where it says that it is."""
    sent = await producer.send_and_wait(
        one.topic, one.value, key=one.key, partition=0, timestamp_ms=one.timestamp, headers=list(one.headers)
    )
    assert sent.offset == one.offset


async def test_the_list_has_each_record_once_with_all_its_readers(left: Left) -> None:
    code, out, _ = await left.run("list", "--topic", left.topic)
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert [line[0] for line in lines] == ["RECORD", f"{left.topic}/0/2", f"{left.topic}/0/1"]
    assert lines[2][4] == "calls,triage"
    assert SAID not in out
    code, out, _ = await left.run("list", "--topic", left.topic, "--reader", "calls", "--json")
    (entry,) = json.loads(out)
    assert (entry["record"], entry["state"], entry["attempt"]) == (f"{left.topic}/0/1", "OPEN", 1)
    assert {one["reader"] for one in entry["failed"]} == {"calls", "triage"}
    code, out, _ = await left.run("list", "--topic", left.topic, "--limit", "1")
    assert "the newest 1" in out
    code, out, _ = await left.run("list", "--topic", left.topic, "--since", "2020-01-01", "--until", "2020-01-02")
    assert (code, out) == (0, "no dead letters match\n")


async def test_one_record_is_shown_with_errors_headers_and_value(left: Left) -> None:
    code, out, _ = await left.run("show", f"{left.topic}/0/2")
    assert code == 0
    for expected in (
        "OPEN, attempt 1",
        "triage, attempt 1: RuntimeError",
        "trace: 3 bytes",
        "CallEvent",
        "call.answered",
    ):
        assert expected in out
    assert SAID not in out
    code, out, _ = await left.run("show", f"{left.topic}/0/2", "--content", "--json")
    assert json.loads(out)["value"]["fields"]["type"] == "call.answered"
    assert SAID in out
    code, out, _ = await left.run("show", f"{left.topic}/0/1", "--content")
    assert "not a record of" in out, "a hex dump has the text beside it"


async def test_a_retry_asks_sends_and_is_listed(left: Left) -> None:
    code, out, err = await left.run("retry", "--all", "--topic", left.topic)
    assert (code, out) == (2, "")
    assert "--yes" in err
    code, out, _ = await left.run("retry", "--all", "--topic", left.topic, "--yes")
    assert code == 0, out
    assert "2 sent, 0 refused; the dead letters are kept" in out
    sent = await sent_again(left, 2)
    assert sorted(record.value for record in sent) == sorted(
        [b"not a record of this project", encode(event("call.answered", call="call-1"))]
    )
    assert {(record.key, record.timestamp, record.headers[0]) for record in sent} == {
        (b"call-1", WRITTEN_MS, ("trace", b"abc"))
    }
    code, out, _ = await left.run("list", "--topic", left.topic, "--json")
    assert {(entry["state"], entry["attempt"]) for entry in json.loads(out)} == {("RETRIED", 2)}
    code, out, _ = await left.run("retry", "--all", "--topic", left.topic, "--yes")
    assert (code, out) == (0, "nothing to send: no open record matches\n")
    # Named, it is sent again all the same.
    code, out, _ = await left.run("retry", f"{left.topic}/0/1", "--yes")
    assert f"sent     {left.topic}/0/1 as {left.topic}/0/5, attempt 3" in out


async def test_a_dismissed_record_is_kept_and_listed_on_demand_alone(left: Left) -> None:
    code, out, err = await left.run("dismiss", f"{left.topic}/0/1")
    assert code == 2
    assert "--reason" in err
    code, out, _ = await left.run("dismiss", f"{left.topic}/0/1", "--reason", "a scanner's noise")
    assert code == 0
    assert f"dismissed  {left.topic}/0/1" in out
    _, out, _ = await left.run("list", "--topic", left.topic, "--limit", "1", "--json")
    assert [entry["record"] for entry in json.loads(out)] == [f"{left.topic}/0/2"]
    _, out, _ = await left.run("list", "--topic", left.topic, "--dismissed", "--json")
    states = {
        entry["record"]: (entry["state"], [note["reason"] for note in entry["dismissed"]]) for entry in json.loads(out)
    }
    assert states == {
        f"{left.topic}/0/1": ("DISMISSED", ["a scanner's noise"]),
        f"{left.topic}/0/2": ("OPEN", []),
    }
    _, out, _ = await left.run("show", f"{left.topic}/0/1")
    assert "after attempt 1: a scanner's noise" in out
    code, out, err = await left.run("dismiss", "--all", "--topic", left.topic, "--reason", "the rest")
    assert (code, "give --yes" in err) == (2, True)
    code, out, _ = await left.run("dismiss", "--all", "--topic", left.topic, "--reason", "the rest", "--yes")
    assert "1 dismissed" in out
    code, out, _ = await left.run("retry", "--all", "--topic", left.topic, "--yes")
    assert (code, out) == (0, "nothing to send: no open record matches\n")


async def sent_again(left: Left, count: int, *, behind: int = 3) -> list[aiokafka.ConsumerRecord]:
    """The `count` records `behind` those that failed."""
    async with (
        aiokafka.AIOKafkaConsumer(enable_auto_commit=False, **left.broker.client_options()) as consumer,
        asyncio.timeout(60),
    ):
        partition = aiokafka.TopicPartition(left.topic, 0)
        consumer.assign([partition])
        consumer.seek(partition, behind)
        return [await consumer.getone() for _ in range(count)]


async def test_an_event_that_was_sent_again_is_the_event(left: Left) -> None:
    await left.run("retry", f"{left.topic}/0/2", "--yes")
    (record,) = await sent_again(left, 1)
    assert decode(record.value) == event("call.answered", call="call-1")


async def test_a_retry_that_is_killed_loses_no_record_and_goes_on_where_it_was(left: Left) -> None:
    count = 5 * RETRY_AT_ONCE
    async with aiokafka.AIOKafkaProducer(**left.broker.producer_options()) as producer:
        for number in range(count):
            one = raw(str(number).encode(), topic=left.topic, offset=3 + number)
            await store(producer, one)
            key, value, headers = dead_letter_of(one, reader="killed", error=FAILED)
            await producer.send(Topic.DEAD_LETTERS, value, key=key, headers=headers)
    choice = ("--all", "--topic", left.topic, "--reader", "killed", "--yes")
    process = await left.start("retry", *choice)
    assert process.stdout is not None
    assert await process.stdout.readline(), "nothing was sent"
    process.kill()
    await process.wait()
    code, out, err = await left.run("retry", *choice)
    assert code == 0, err
    sent_later = int(out.splitlines()[-1].split()[0])
    assert 0 < sent_later < count
    async with aiokafka.AIOKafkaConsumer(**left.broker.client_options(), enable_auto_commit=False) as consumer:
        partition = aiokafka.TopicPartition(left.topic, 0)
        consumer.assign([partition])
        written = (await consumer.end_offsets([partition]))[partition] - (3 + count)
    everything = await sent_again(left, max(written, count), behind=3 + count)
    assert {record.value for record in everything} == {str(number).encode() for number in range(count)}
    assert len(everything) - count <= RETRY_AT_ONCE, "what is sent twice is no more than was under way"
    _, out, _ = await left.run("list", "--topic", left.topic, "--reader", "killed", "--limit", "10000", "--json")
    assert Counter(entry["state"] for entry in json.loads(out)) == {"RETRIED": count}


async def test_a_webhook_is_refused_with_the_reason(left: Left) -> None:
    async with aiokafka.AIOKafkaProducer(**left.broker.producer_options()) as producer:
        sent = await producer.send_and_wait(
            Topic.DEAD_LETTERS,
            b"{}",
            key=b"v3:leg",
            headers=[("origin", b"webhook"), ("reader", b"gateway"), ("error", b"the event names no call")],
        )
    name = str(Place(Topic.DEAD_LETTERS, sent.partition, sent.offset))
    code, out, _ = await left.run("retry", name, "--yes")
    assert code == 1
    assert f"refused  {name}: it never was a record of a topic: a webhook's body" in out
    code, out, _ = await left.run("show", name)
    assert "the event names no call" in out


async def test_commands_and_what_never_was_a_record_are_left_out_unless_they_are_named(left: Left) -> None:
    reader = f"reader-{uuid.uuid4().hex[:8]}"
    command = raw(b"no command", topic=Topic.DISPATCH_ACTIONS, offset=0)
    async with aiokafka.AIOKafkaProducer(**left.broker.producer_options()) as producer:
        key, value, headers = dead_letter_of(command, reader=reader, error=FAILED)
        await producer.send_and_wait(Topic.DEAD_LETTERS, value, key=key, headers=headers)
        webhook = [("origin", b"webhook"), ("reader", reader.encode()), ("error", b"no call")]
        await producer.send_and_wait(Topic.DEAD_LETTERS, b"{}", key=b"v3:leg", headers=webhook)
    code, out, err = await left.run("retry", "--all", "--reader", reader, "--yes")
    assert code == 0, out + err
    assert out.splitlines() == [
        f"left out 1 record: {dead_letters.NOT_NAMED}",
        f"left out 1 record: {dead_letters.NEVER_A_RECORD}",
        "nothing to send: no open record matches",
    ]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("retry", "--all", "--unconfirmed"), "--unconfirmed needs records that are named"),
        (("show", "call-events"), "give TOPIC/PARTITION/OFFSET"),
        (("list", "--since", "yesterday"), "90m, 2h, 7d"),
        (("retry",), "name records as `dead-letters list` shows them, or give --all"),
        (("retry", "--all", "call-events/0/1"), "name records"),
        (("retry", "call-events/0/1", "--reader", "calls"), "need --all"),
        (("show", "call-events/0/9999999"), "there is no dead letter for call-events/0/9999999"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
async def test_a_wrong_argument_is_reported_in_a_line(left: Left, arguments: tuple[str, ...], says: str) -> None:
    code, _, err = await left.run(*arguments)
    assert code != 0
    assert says in err


async def test_a_kafka_that_is_not_there_is_named(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    code, _, err = await Left(KafkaConnection(address), tmp_path, "").run("list")
    assert code == 1
    assert f"no Kafka answers at {address}" in err
