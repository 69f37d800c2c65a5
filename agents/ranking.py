"""The ranking agent: puts calls into the queue. Reads `assessments`, writes `live-calls` and `dispatch-queue`.

A live entry is written at most four times a second; a packet at once. Where a call stands is decided in
`dispatchai.triage.ranking`. The agent keeps no state: an assessment says all.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Final

from faust.types import TP

from dispatchai.engine import agent
from dispatchai.engine.app import App
from dispatchai.engine.deadletters import bury
from dispatchai.engine.throttle import Throttle
from dispatchai.engine.transport import Batch, Record, whole
from dispatchai.records import Assessment, AssessmentKind, CallPacket, LiveCall, decode_as, encode
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


def _is_live(assessed: tuple[Record, Assessment]) -> bool:
    return assessed[1].kind is AssessmentKind.LIVE


def _without_overtaken(assessed: Sequence[tuple[Record, Assessment]]) -> Sequence[tuple[Record, Assessment]]:
    """The assessments of one call without the live ones that a later live one replaces: nobody would see them."""
    last_live = max((number for number, one in enumerate(assessed) if _is_live(one)), default=None)
    return [one for number, one in enumerate(assessed) if number == last_live or not _is_live(one)]


def make(app: App) -> None:
    """Make the agent."""
    throttle: Throttle[tuple[TP, Record, Assessment]] = Throttle(LIVE_APART_S)
    app.on_forget.append(throttle.forget)
    for topic in (LIVE_TOPIC, QUEUE_TOPIC):
        app.latest.add(topic)
    to_live, to_packet = app.metrics.journey("webhook_to_live"), app.metrics.journey("hangup_to_packet")

    async def write(
        topic: str,
        shape: Callable[[str, Assessment], LiveCall | CallPacket],
        call_id: str,
        tp: TP,
        record: Record,
        assessment: Assessment,
    ) -> None:
        """Write what follows from `assessment`; one from which nothing can follow is buried."""
        try:
            value = encode(shape(call_id, assessment))
        except Exception as error:  # noqa: BLE001 - an agent never raises: what failed goes to the dead letters
            await bury(app.emitter, whole(tp, record), reader=NAME, error=error)
            return
        await app.latest.send(topic, call_id.encode(), value, partition=tp.partition)

    async def write_live(call_id: str, tp: TP, record: Record, assessment: Assessment) -> None:
        await write(LIVE_TOPIC, live_call, call_id, tp, record, assessment)
        to_live.end(call_id)
        app.coverage.release(tp, (NAME, call_id))

    async def remove_live(call_id: str, tp: TP) -> None:
        throttle.drop(call_id)
        app.coverage.release(tp, (NAME, call_id))
        await app.latest.send(LIVE_TOPIC, call_id.encode(), None, partition=tp.partition)

    async def process(batch: Batch) -> None:
        # Packets first: a batch is long when the worker is behind, and live entries will be overtaken by others anyway.
        calls = [(key, await agent.decoded(app, NAME, decode, batch.tp, records)) for key, records in batch.by_key()]
        for key, assessed in sorted(calls, key=lambda call: all(map(_is_live, call[1]))):
            for record, assessment in _without_overtaken(assessed):
                assert key is not None  # noqa: S101 - `decoded` buries records without one
                call_id = key.decode()
                match assessment.kind:
                    case AssessmentKind.LIVE:
                        if throttle.offer(call_id, (batch.tp, record, assessment), time.monotonic()):
                            await write_live(call_id, batch.tp, record, assessment)
                        else:
                            app.coverage.hold(batch.tp, (NAME, call_id), record.offset)
                    case AssessmentKind.FINAL:
                        await write(QUEUE_TOPIC, packet, call_id, batch.tp, record, assessment)
                        to_packet.end(call_id)
                        await remove_live(call_id, batch.tp)
                    case AssessmentKind.EXPIRED:
                        await remove_live(call_id, batch.tp)

    async def write_held_back() -> None:
        while True:
            # One by one: while one is written another call may end, whose entry must not follow its tombstone.
            for call_id, held in throttle.due(time.monotonic()):
                await write_live(call_id, *held)
            await asyncio.sleep(LIVE_APART_S / 4)

    agent.run_batches(app, NAME, [SOURCE], process)
    app.background(write_held_back)
