"""Each 20 ms frame of each caller becomes one record of its call: none missing, none twice, in order."""

from __future__ import annotations

import asyncio
import signal
from collections import defaultdict
from pathlib import Path

import aiokafka

from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.topics import Topics
from dispatchai.records import AudioFrame, FrameKind, decode_as
from dispatchai.simulator.recording import load
from dispatchai.speech.engines import RECORDINGS
from tests.support.system import System, packets_in, read_until

FILES = [RECORDINGS / f"{name}.wav" for name in ("cardiac_arrest", "kitchen_fire", "noise_complaint", "cardiac_arrest")]


async def frames_of(broker: KafkaConnection, call_ids: set[str]) -> dict[str, list[AudioFrame]]:
    """All records of the calls, by key, in the order of their offsets."""
    consumer = aiokafka.AIOKafkaConsumer("audio-frames", **broker.client_options(), auto_offset_reset="earliest")
    await consumer.start()
    frames: dict[str, list[AudioFrame]] = defaultdict(list)
    keys = {call_id.encode() for call_id in call_ids}
    try:
        async with asyncio.timeout(60):
            while sum(
                frames[call_id][-1:] != [] and frames[call_id][-1].kind is FrameKind.END for call_id in call_ids
            ) < len(call_ids):
                for records in (await consumer.getmany(timeout_ms=100)).values():
                    for record in records:
                        if record.key in keys:
                            frames[record.key.decode()].append(decode_as(AudioFrame, record.value))
        return frames
    finally:
        await consumer.stop()


async def test_four_calls_at_200_frames_a_second_are_recorded_frame_by_frame(
    broker: KafkaConnection, topics: Topics, tmp_path: Path
) -> None:
    system = System.on(broker, tmp_path, SPEECH_ENGINE="scripted", LOG_LEVEL="WARNING")
    process = await system.run("up")
    await read_until(process, "Ctrl-C stops everything")
    try:
        calling = await system.run("call", *map(str, FILES), "--json")
        output, _ = await calling.communicate()
    finally:
        process.send_signal(signal.SIGINT)
        await process.communicate()
    assert calling.returncode == 0, output.decode()
    # Callers are numbered in the order of the files.
    packets = sorted(packets_in(output.decode()), key=lambda packet: str(packet["from_number"]))
    recorded = await frames_of(broker, {packet["call_id"] for packet in packets})

    for packet, file in zip(packets, FILES, strict=True):
        records = recorded[packet["call_id"]]
        audio = load(file)
        sent = [audio.frame(index) for index in range(audio.frames)]
        assert [record.kind for record in records] == [
            FrameKind.START,
            *([FrameKind.FRAME] * len(sent)),
            FrameKind.END,
        ]
        assert [record.sequence for record in records] == list(range(len(sent) + 2))
        assert [record.payload for record in records[1:-1]] == sent
