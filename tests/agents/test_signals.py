"""The signals that the agent writes for the records that it reads."""

from __future__ import annotations

import random
import time
from pathlib import Path
from uuid import uuid4

import aiokafka
import pytest

from agents import signals as agent
from agents.signals import follow_events, hear_frames
from dispatchai.audio.signals import step
from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.topics import Topic
from dispatchai.records import AudioFrame, SignalKind, decode_as, encode
from dispatchai.records import Signal as SignalRecord
from tests.engine.test_app import read, running, until
from tests.speech.audio import pcmu, records, tone
from tests.support.application import PARTITIONS, new_group
from tests.support.recorded_call import EXPIRED, event, utterance


def test_a_stream_is_signalled_from_its_start_to_its_end() -> None:
    stepped = hear_frames("call", None, records(pcmu(tone(3000))))
    assert {output.topic for output in stepped.outputs} == {Topic.SIGNALS}
    signals = [decode_as(SignalRecord, output.value or b"") for output in stepped.outputs]
    assert (signals[0].kind, signals[-1].kind) == (SignalKind.START, SignalKind.END)
    assert signals[-1].audio_ms == 3000


def test_an_expired_call_keeps_no_state() -> None:
    state = hear_frames("call", None, records(pcmu(tone(100)))).state
    assert state is not None
    stepped = follow_events("call", state, [event("call.hangup"), EXPIRED])
    assert (stepped.state, stepped.outputs) == (None, ())


def test_other_events_change_nothing() -> None:
    state = hear_frames("call", None, records(pcmu(tone(100)))).state
    stepped = follow_events("call", state, [event("call.answered"), event("call.hangup")])
    assert (stepped.state, stepped.outputs) == (state, ())
    assert follow_events("call", None, [event("call.initiated")]).state is None


@pytest.mark.parametrize("jump_s", [0, 2 * 3600], ids=["clock is right", "clock jumps"])
@pytest.mark.usefixtures("topics")
async def test_calls_that_speak_at_once_have_the_signals_of_each_alone(
    broker: KafkaConnection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump_s: int
) -> None:
    mark = uuid4().hex[:8]
    calls = {
        f"{mark}-{number}": records(pcmu(tone(1500 + 200 * number)), stream_id=f"s{number}") for number in range(12)
    }
    dice = random.Random(1)
    left = {call: list(frames) for call, frames in calls.items()}
    group = await new_group(broker, tmp_path, tables=[agent.NAME], sources=[Topic.AUDIO_FRAMES, Topic.CALL_EVENTS])
    app = group.app()
    states = agent.make(app, PARTITIONS)
    off_s, seconds, nanoseconds = 0, time.time, time.time_ns
    monkeypatch.setattr(time, "time", lambda: seconds() + off_s)
    monkeypatch.setattr(time, "time_ns", lambda: nanoseconds() + off_s * 1_000_000_000)

    def ours(found: list[aiokafka.ConsumerRecord]) -> list[aiokafka.ConsumerRecord]:
        return [record for record in found if record.key in {call.encode() for call in calls}]

    alone = {call: step(None, frames) for call, frames in calls.items()}
    async with running(app), aiokafka.AIOKafkaProducer(**broker.producer_options()) as producer:
        while any(left.values()):
            off_s = dice.choice([-jump_s, 0, jump_s])
            call = dice.choice([call for call, frames in left.items() if frames])
            for frame in left[call][:20]:
                await producer.send(Topic.AUDIO_FRAMES, encode(frame), key=call.encode())
            del left[call][:20]
        await producer.send(Topic.AUDIO_FRAMES, b"no frame", key=next(iter(calls)).encode())
        total = sum(len(stepped.signals) for stepped in alone.values())
        found = ours(await read(broker, Topic.SIGNALS, lambda found: len(ours(found)) >= total))
        await until(lambda: all(states.get(call) == stepped.state for call, stepped in alone.items()))
        for call in calls:
            await producer.send(Topic.CALL_EVENTS, encode(EXPIRED), key=call.encode())
        await until(lambda: all(states.get(call) is None for call in calls))
    for call, stepped in alone.items():
        made = [decode_as(SignalRecord, record.value) for record in found if record.key == call.encode()]
        assert tuple(made) == stepped.signals


def test_a_record_of_another_type_is_no_frame() -> None:
    with pytest.raises(ValueError, match="Utterance"):
        decode_as(AudioFrame, encode(utterance(0, "Help.")))
