"""The ranking agent: puts calls into the queue. Reads `assessments`, writes `live-calls` and `dispatch-queue`.

A live entry is written at most four times a second; a packet at once. Where a call stands is decided in
`dispatchai.triage.ranking`. The agent keeps no state: an assessment says all.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

from faust.types import TP

from dispatchai.engine import agent
from dispatchai.engine.app import App
from dispatchai.engine.throttle import Throttle
from dispatchai.engine.transport import Batch
from dispatchai.records import Assessment, AssessmentKind, decode_as, encode
from dispatchai.triage.ranking import live_call, packet

NAME: Final = "ranking"
SOURCE: Final = "assessments"
LIVE_TOPIC: Final = "live-calls"
QUEUE_TOPIC: Final = "dispatch-queue"

LIVE_APART_S: Final = 0.25
"""Four live entries a second of a call: as fast as a dispatcher can read one change after another."""


def decode(value: bytes) -> Assessment:
    """The assessment in a record's value. Raises DecodeError."""
    return decode_as(Assessment, value)


def make(app: App) -> None:
    """Make the agent."""
    throttle: Throttle[tuple[TP, Assessment]] = Throttle(LIVE_APART_S)
    app.on_forget.append(throttle.forget)

    async def write_live(call_id: str, tp: TP, assessment: Assessment) -> None:
        await app.emitter.send(
            LIVE_TOPIC, call_id.encode(), encode(live_call(call_id, assessment)), partition=tp.partition
        )
        app.coverage.release(tp, (NAME, call_id))

    async def process(batch: Batch) -> None:
        for key, records in batch.by_key():
            for record, assessment in await agent.decoded(app, NAME, decode, records):
                assert key is not None  # noqa: S101 - `decoded` buries records without one
                call_id = key.decode()
                match assessment.kind:
                    case AssessmentKind.LIVE:
                        if throttle.offer(call_id, (batch.tp, assessment), time.monotonic()):
                            await write_live(call_id, batch.tp, assessment)
                        else:
                            app.coverage.hold(batch.tp, (NAME, call_id), record.offset)
                    case AssessmentKind.FINAL:
                        await app.emitter.send(
                            QUEUE_TOPIC, key, encode(packet(call_id, assessment)), partition=batch.tp.partition
                        )
                        await remove_live(call_id, batch.tp)
                    case AssessmentKind.EXPIRED:
                        await remove_live(call_id, batch.tp)

    async def remove_live(call_id: str, tp: TP) -> None:
        throttle.drop(call_id)
        app.coverage.release(tp, (NAME, call_id))
        await app.emitter.send(LIVE_TOPIC, call_id.encode(), None, partition=tp.partition)

    async def write_held_back() -> None:
        while True:
            for call_id, (tp, assessment) in list(throttle.due(time.monotonic())):
                await write_live(call_id, tp, assessment)
            await asyncio.sleep(LIVE_APART_S / 4)

    agent.run_batches(app, NAME, [SOURCE], process)
    app.background(write_held_back)
