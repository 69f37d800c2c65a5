"""Three recorded callers are ranked rightly, with the same packets on both brokers, and nothing is left running."""

from __future__ import annotations

import asyncio
import re
import signal
from pathlib import Path
from typing import Any

import aiohttp
import aiokafka
import pytest

from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.topics import Topic
from dispatchai.records import CallPacket, decode_as
from tests.support.system import System, packets_in, read_until

IDS_AND_TIMES = {"call_id", "call_control_id", "utterance_id", "started_at", "answered_at", "ended_at", "created_at"}

seen: dict[str, list[dict[str, Any]]] = {}
"""Packets by broker, ids and times taken out."""


def without_ids_and_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_ids_and_times(item) for name, item in value.items() if name not in IDS_AND_TIMES}
    if isinstance(value, list):
        return [without_ids_and_times(item) for item in value]
    return value


async def test_three_callers_are_ranked_by_what_they_say_and_not_by_how_loud_they_are(
    broker: KafkaConnection, tmp_path: Path
) -> None:
    system = System.on(None if broker.embedded else broker, tmp_path)
    process = await system.run("demo", "--exit", "--json")
    output, _ = await process.communicate()
    text = output.decode()
    assert process.returncode == 0, text
    packets = packets_in(text)

    assert [packet["nlp"]["category"] for packet in packets] == ["EMS", "FIRE", "POLICE"], text
    arrest, fire, noise = packets
    assert (arrest["risk"]["level"], fire["risk"]["level"], noise["risk"]["level"]) == ("CRITICAL", "CRITICAL", "LOW")
    assert arrest["audio"]["distress_score"] < fire["audio"]["distress_score"]
    assert "CARDIAC_ARREST" in arrest["nlp"]["tags"]
    for packet in packets:
        assert packet["complete"]
        assert packet["version"] == 1
        assert packet["audio"]["missing_frames"] == 0
        assert sum(part["points"] for part in packet["parts"]) == pytest.approx(packet["risk"]["score"])
    # Duration is rounded to seconds: what takes 15.49 s once may take 15.51 s the next time.
    seen[broker_kind(broker)] = [
        {name: value for name, value in without_ids_and_times(packet).items() if name != "duration_seconds"}
        for packet in packets
    ]
    if not broker.embedded:
        await assert_in_topic(broker, {packet["call_id"] for packet in packets})
    assert system.processes() == []


def broker_kind(broker: KafkaConnection) -> str:
    return "embedded" if broker.embedded else "apache-kafka"


async def assert_in_topic(broker: KafkaConnection, call_ids: set[str]) -> None:
    consumer = aiokafka.AIOKafkaConsumer(Topic.DISPATCH_QUEUE, **broker.client_options(), auto_offset_reset="earliest")
    await consumer.start()
    try:
        async with asyncio.timeout(30):
            while call_ids:
                record = await consumer.getone()
                # Other tests leave what is neither a key nor a packet.
                if record.key in {call_id.encode() for call_id in call_ids}:
                    call_id = decode_as(CallPacket, record.value).call_id
                    assert record.key == call_id.encode()
                    call_ids.discard(call_id)
    finally:
        await consumer.stop()


def test_both_brokers_gave_the_same_packets() -> None:
    if set(seen) != {"embedded", "apache-kafka"}:
        pytest.skip("the calls were not made on both brokers in this run")
    assert seen["embedded"] == seen["apache-kafka"]


async def test_ctrl_c_leaves_no_process_behind(tmp_path: Path) -> None:
    system = System.on(None, tmp_path, SPEECH_ENGINE="scripted")
    process = await system.run("up")
    output = await read_until(process, "Ctrl-C stops everything")
    assert len(system.processes()) >= 4
    async with aiohttp.ClientSession() as http, http.get(f"{system.console_url}/") as page:
        assert page.status == 200
    assert system.console_url in output
    process.send_signal(signal.SIGINT)
    async with asyncio.timeout(30):
        rest, _ = await process.communicate()
    assert process.returncode == 0, rest.decode()
    assert not re.search("Traceback|exception", rest.decode()), rest.decode()
    assert system.processes() == []


async def test_a_killed_parent_takes_its_processes_with_it(tmp_path: Path) -> None:
    system = System.on(None, tmp_path, SPEECH_ENGINE="scripted")
    process = await system.run("up")
    await read_until(process, "Ctrl-C stops everything")
    process.kill()
    await process.wait()
    async with asyncio.timeout(30):
        while system.processes():  # noqa: ASYNC110 - the end of another's process is no event here
            await asyncio.sleep(0.1)


async def test_a_port_that_is_taken_is_named_with_what_to_do(tmp_path: Path) -> None:
    system = System.on(None, tmp_path, SPEECH_ENGINE="scripted")
    port = system.environment["GATEWAY_PORT"]
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", int(port))
    async with server:
        process = await system.run("up")
        async with asyncio.timeout(60):
            output, _ = await process.communicate()
    assert process.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in output.decode()
    assert "GATEWAY_PORT" in output.decode()
    assert system.processes() == []


async def test_ctrl_c_while_it_starts_stops_what_was_started(tmp_path: Path) -> None:
    system = System.on(None, tmp_path, SPEECH_ENGINE="scripted")
    process = await system.run("up")
    await read_until(process, "starting gateway")
    process.send_signal(signal.SIGINT)
    async with asyncio.timeout(30):
        rest, _ = await process.communicate()
    assert process.returncode == 0, rest.decode()
    assert system.processes() == []
