"""With Kafka and `schemas/` alone, any tool that knows nothing of the project can read all records of a call."""

from __future__ import annotations

import ast
import asyncio
import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from agents import calls, ranking, signals, speech, triage
from dispatchai.calls.config import CallControlConfig
from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.topics import Topic, Topics
from dispatchai.records import Action, ActionKind, FrameKind, RiskLevel
from dispatchai.resources import data_path
from dispatchai.settings import Settings, SpeechEngine
from dispatchai.telnyx.client import TelnyxClient
from tests.speech.audio import recording, records
from tests.support.application import PARTITIONS, call_name, dead_letters, new_group, produce, read, read_call, running
from tests.support.call_control_api import running_carrier
from tests.support.kafka.brokers import Brokers
from tests.support.left_out import leave_out
from tests.support.recorded_call import RULES, S, event

CONSUMER = Path(__file__).with_name("consumer.py")

SETTINGS = Settings(speech_engine=SpeechEngine.SCRIPTED)

POISON = b"not a record of this project"

KCAT_TIMEOUT_S = 60


@dataclass(frozen=True, slots=True)
class Recorded:
    """A call that is over, and where it is recorded."""

    broker: KafkaConnection
    call_id: str
    frames: int


async def record_call(broker: KafkaConnection, folder: Path) -> Recorded:
    """A caller reports a cardiac arrest; all agents follow the call to its packet."""
    call_id = call_name("stranger")
    tables = [calls.NAME, signals.NAME, triage.NAME, speech.NAME]
    sources = {
        *calls.SOURCES,
        Topic.ASSESSMENTS,
        Topic.AUDIO_FRAMES,
        Topic.CALL_EVENTS,
        *speech.SOURCES,
        *triage.SOURCES,
    }
    group = await new_group(broker, folder, tables=tables, sources=sorted(sources))
    app = group.app()
    frames = records(recording("cardiac_arrest"))
    now = time.time_ns() // 1000 - 30 * S
    async with running_carrier() as carrier:
        client = TelnyxClient(carrier.url, SecretStr("KEY-of-the-test"))
        app.on_close.append(client.close)
        config = CallControlConfig.from_settings(SETTINGS)
        calls.make(app, PARTITIONS, config=config, client=client, token_for=lambda call, leg: "")
        signals.make(app, PARTITIONS)
        triage.make(app, PARTITIONS, RULES)
        ranking.make(app)
        speech.make(app, PARTITIONS, SETTINGS)
        async with running(app):
            ringing = event("call.initiated", start=now, call=call_id, direction="incoming")
            await produce(broker, Topic.CALL_EVENTS, call_id, [ringing, POISON])
            await dead_letters(broker, call_id, 1)
            answered = [event(kind, 1, start=now, call=call_id) for kind in ("call.answered", "streaming.started")]
            await produce(broker, Topic.CALL_EVENTS, call_id, answered)
            await produce(broker, speech.SOURCES[0], call_id, frames)
            await read_call(broker, Topic.LIVE_CALLS, call_id, lambda entries: any(entries))
            hangup = event("call.hangup", 29, start=now, call=call_id, hangup_cause="normal_clearing")
            await produce(broker, Topic.CALL_EVENTS, call_id, [hangup])
            await read_call(broker, Topic.DISPATCH_QUEUE, call_id, bool)
            await read(broker, Topic.LIVE_CALLS, [call_id], lambda found: any(record.value is None for record in found))
            note = Action("action-1", ActionKind.NOTE, "dispatcher-7", now + 40 * S, "Ambulance sent.", None, None)
            await produce(broker, "dispatch-actions", call_id, [note])
    return Recorded(broker, call_id, len(frames))


@pytest.fixture(scope="module")
def recorded(broker: KafkaConnection, brokers: Brokers, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """One call, recorded once on each broker."""
    brokers.topics(broker)
    return asyncio.run(record_call(broker, tmp_path_factory.mktemp("recorded")))


def test_the_strangers_consumer_does_not_import_the_project() -> None:
    imported = {
        name.partition(".")[0]
        for node in ast.walk(ast.parse(CONSUMER.read_text(encoding="utf-8")))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or "", *["." * node.level][: node.level]]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert imported - sys.stdlib_module_names == {"aiokafka", "fastavro"}


def test_a_consumer_with_the_schemas_alone_reads_all_topics_of_a_call(recorded: Recorded, tmp_path: Path) -> None:
    names = list(Topics.load().topics)
    # -I: it finds the project's modules neither in the working directory nor by PYTHONPATH.
    program = [sys.executable, "-I", str(CONSUMER)]
    arguments = [recorded.broker.bootstrap_servers, str(data_path("schemas")), recorded.call_id, *names]
    done = subprocess.run([*program, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True)
    printed: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for line in done.stdout.splitlines():
        record = json.loads(line)
        printed[record["topic"]].append(record)

    assert {name for name, found in printed.items() if not found} == set()
    everything = [record for found in printed.values() for record in found]
    assert {record["key"] for record in everything} == {recorded.call_id}
    assert len({record["partition"] for record in everything}) == 1, "a call's records do not meet in one worker"

    schemas = {spec.name: spec.schema for spec in Topics.load().topics.values()}
    poison = {"record": "unknown", "hex": POISON.hex()}
    for name, found in printed.items():
        unread = [record for record in found if record["record"] not in (schemas[name], None)]
        if name in (Topic.CALL_EVENTS, "dead-letters"):
            assert {(record["record"], record["hex"]) for record in unread} == {("unknown", POISON.hex())}
        else:
            assert unread == []

    frames = [record["fields"] for record in printed["audio-frames"]]
    assert len(frames) == recorded.frames
    assert [frame["sequence"] for frame in frames] == list(range(recorded.frames))
    assert [frame["kind"] for frame in (frames[0], frames[-1])] == [FrameKind.START, FrameKind.END]
    events = [record["fields"]["type"] for record in printed["call-events"] if record.get("fields")]
    webhooks = [kind for kind in events if not kind.startswith("dispatchai.")]
    assert webhooks == ["call.initiated", "call.answered", "streaming.started", "call.hangup"]
    spoken = [record["fields"] for record in printed["transcripts"]]
    text = " ".join(one["text"] for one in spoken if one["kind"] == "FINAL")
    assert text.startswith("I need an ambulance please. My husband has collapsed")
    assert printed["live-calls"][-1]["record"] is None, "the entry of a call that is over has no tombstone"
    (packet,) = [record["fields"] for record in printed["dispatch-queue"]]
    assert packet["call_id"] == recorded.call_id
    assert packet["complete"]
    assert packet["nlp"]["transcript"] == text
    assert packet["risk"]["level"] == RiskLevel.CRITICAL
    assert printed["dispatch-actions"][0]["fields"]["text"] == "Ambulance sent."

    dead = printed["dead-letters"]
    assert {letter["headers"]["reader"] for letter in dead} >= {calls.NAME, triage.NAME}
    for letter in dead:
        assert (letter["record"], letter["hex"]) == tuple(poison.values())
        assert letter["headers"]["origin.topic"] == Topic.CALL_EVENTS
        origin = (int(letter["headers"]["origin.partition"]), int(letter["headers"]["origin.offset"]))
        assert origin in [(record["partition"], record["offset"]) for record in printed["call-events"]]


def kcat(*arguments: str) -> str:
    """The output of kcat."""
    program = shutil.which("kcat")
    if program is None:
        leave_out("kcat", "kcat is not installed", "DISPATCHAI_REQUIRE_KCAT")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=True, timeout=KCAT_TIMEOUT_S)
    return done.stdout


# librdkafka and the embedded broker do not agree on ApiVersions, so kcat cannot talk to it.
@pytest.mark.parametrize("broker", ["apache-kafka"], indirect=True)
def test_kcat_lists_the_topics_and_shows_keys_and_tombstones(recorded: Recorded) -> None:
    servers = ("-b", recorded.broker.bootstrap_servers)
    topics = Topics.load()
    listed = json.loads(kcat(*servers, "-L", "-J"))
    partitions = {topic["topic"]: len(topic["partitions"]) for topic in listed["topics"]}
    assert {name: partitions.get(name) for name in topics.topics} == dict.fromkeys(topics.topics, topics.partitions)

    # %k the key, %S the length of the value, -1 for a tombstone.
    shown = kcat(*servers, "-C", "-t", Topic.LIVE_CALLS, "-o", "beginning", "-e", "-q", "-f", r"%k %S\n")
    lengths = [int(line.split()[1]) for line in shown.splitlines() if line.split()[0] == recorded.call_id]
    assert lengths[-1] == -1
    assert all(length > 0 for length in lengths[:-1])
    assert len(lengths) > 1
