"""The signals agent: measures the caller's voice. Reads `audio-frames`, and `call-events` for the end of a call's
state; writes `signals`.

`dispatchai.audio.signals` decides what is measured. Frames of live streams, which are nearly all records, are applied
for all calls of a fetch at once (`dispatchai.audio.voice_columns`); other records are applied call by call.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import Final

import numpy as np
import numpy.typing as npt
from faust.types import TP

from dispatchai.audio import signals
from dispatchai.audio.state_columns import StateColumns
from dispatchai.audio.voice_columns import Heard, hear
from dispatchai.calls.events import EventType
from dispatchai.engine import agent
from dispatchai.engine.app import App
from dispatchai.engine.fetch import Batch, Fetch
from dispatchai.kafka.topics import Topic
from dispatchai.records import AudioFrame, CallEvent, Signal, SignalState, decode_as, encode
from dispatchai.records.column_encoder import encode_columns
from dispatchai.records.frame_decoder import decode_frame, decode_frames

NAME: Final = "signals"
SOURCES: Final = (Topic.AUDIO_FRAMES, Topic.CALL_EVENTS)

FRAMES_AT_ONCE: Final = 8_192
FRAME_BYTES_AT_ONCE: Final = 8_388_608
"""Most frames that are applied before others have their turn: 160 s of one call, which take most of a second."""


def hear_frames(call_id: str, state: SignalState | None, frames: Sequence[AudioFrame]) -> agent.Stepped[SignalState]:
    """The pure step over the frames of one call, with its signals as outputs."""
    stepped = signals.step(state, frames)
    outputs = [agent.Output(Topic.SIGNALS, encode(signal)) for signal in stepped.signals]
    return agent.Stepped(stepped.state, outputs, snapshot=stepped.snapshot)


def follow_events(call_id: str, state: SignalState | None, events: Sequence[CallEvent]) -> agent.Stepped[SignalState]:
    """The pure step over the events of one call: `dispatchai.expired` deletes its state."""
    return agent.Stepped(None if any(event.type == EventType.EXPIRED for event in events) else state)


class SignalStates:
    """The states of all calls by key, on top of their columns."""

    def __init__(self, app: App, partitions: int) -> None:
        self.name = NAME
        self.columns = StateColumns()
        self.columnar = app.columnar_states(NAME, self.columns, partitions=partitions)

    def get(self, key: str) -> SignalState | None:
        """The state of a call, or None. Does not change memory. Raises DecodeError for a snapshot of the future."""
        row = self.columnar.find([key.encode()])[0]
        if row >= 0:
            return self.columns.get(int(row))
        stored = self.columnar.stored(key)
        return None if stored is None else decode_as(SignalState, stored)

    def put(self, key: str, state: SignalState | None, tp: TP, offset: int, *, snapshot: bool) -> None:
        """Set the state of a call as it is after the records of `tp` from `offset` on; None deletes it."""
        if state is None and self.get(key) is None:
            return
        rows = self.columnar.rows(tp, [key.encode()])
        if state is None:
            self.columns.clear(int(rows[0]))
        else:
            self.columns.set(int(rows[0]), state)
        self.columnar.applied(tp, rows, np.array([offset]))
        if snapshot:
            self.columnar.want(rows, at_once=True)


class SignalsAgent:
    """Applies fetches to the states, once `app` has started."""

    def __init__(self, app: App, partitions: int) -> None:
        self._app = app
        self.states = SignalStates(app, partitions)
        self._latency = app.metrics.stage("frame_to_signal")
        agent.run_fetches(app, NAME, SOURCES, self.process, most=(FRAMES_AT_ONCE, FRAME_BYTES_AT_ONCE))

    async def process(self, fetch: Fetch) -> None:
        """Apply the records that one fetch, or a part of it, brought of either topic."""
        if fetch.batches[0].tp.topic == Topic.CALL_EVENTS:
            decode = partial(decode_as, CallEvent)
            for batch in fetch.batches:
                await agent.apply(self._app, self.states, batch, decode=decode, step=follow_events)
            return
        await self._hear(fetch)
        await asyncio.sleep(0)

    async def _hear(self, fetch: Fetch) -> None:
        """Apply the frames of a fetch."""
        records = [record for batch in fetch.batches for record in batch.records]
        frames = decode_frames([record.value or b"" for record in records])
        heard = hear(frames)
        rows = self.states.columnar.find([record.key for record in records])
        usual = heard.usual & self.states.columns.voices.go_on(rows, frames)
        if not usual.all():
            # An unusual record takes the other records of its call with it: they must stay in their order.
            usual &= ~np.isin(rows, rows[~usual])
            await self._hear_one_by_one(fetch, ~usual)
        await self._hear_together(fetch, rows, heard, usual)
        self._latency.observe_many(np.maximum(0.0, time.time() - frames.captured_at[usual] / 1e6))

    async def _hear_one_by_one(self, fetch: Fetch, chosen: npt.NDArray[np.bool_]) -> None:
        """Apply the `chosen` records of a fetch call by call. Where one of a call is chosen, all of them are."""
        start = 0
        for batch in fetch.batches:
            end = start + len(batch.records)
            records = tuple(batch.records[index] for index in np.flatnonzero(chosen[start:end]))
            start = end
            if records:
                some = Batch(batch.tp, records)
                await agent.apply(self._app, self.states, some, decode=decode_frame, step=hear_frames)

    async def _hear_together(
        self, fetch: Fetch, rows: npt.NDArray[np.int64], heard: Heard, usual: npt.NDArray[np.bool_]
    ) -> None:
        """Apply the usual frames of a fetch. `rows` has the row of the call of each record."""
        states, voices = self.states.columnar, self.states.columns.voices
        if not usual.all():
            heard = heard.only(usual[heard.record])
        of_frames = rows[heard.record]
        step = voices.step(of_frames, heard)
        outputs: dict[int, list[tuple[bytes, bytes | None]]] = defaultdict(list)
        made = encode_columns(Signal.__name__, step.signals, len(step.signalled))
        for row, signal in zip(step.signalled.tolist(), made, strict=True):
            outputs[states.partition(row)].append((states.key(row), signal))
        # Outputs before states: a snapshot covers the outputs that were sent before it was taken.
        await self._app.emitter.ready()
        for partition, records in outputs.items():
            self._app.emitter.send_soon(Topic.SIGNALS, partition, records, timestamp_ms=time.time_ns() // 1_000_000)
        voices.keep(step)
        ends = np.cumsum([len(batch.records) for batch in fetch.batches])
        cuts = np.searchsorted(heard.record, [0, *ends])
        for number, batch in enumerate(fetch.batches):
            here = slice(cuts[number], cuts[number + 1])
            within = heard.record[here] - (ends[number] - len(batch.records))
            states.applied(batch.tp, of_frames[here], batch.offsets()[within])
        states.want(step.signalled)


def make(app: App, partitions: int) -> SignalStates:
    """Make the agent."""
    return SignalsAgent(app, partitions).states
