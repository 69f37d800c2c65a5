"""The signals agent: measures the caller's voice. Reads `audio-frames`, and `call-events` for the end of a call's
state; writes `signals`.

What is measured is decided in `dispatchai.audio.signals`. The frames of live streams, which are nearly all there is,
are applied for all calls of a batch at once (`dispatchai.audio.many_signals`); what else comes goes call by call.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import Final

import numpy as np
import numpy.typing as npt
from faust.types import TP

from dispatchai.audio import signals
from dispatchai.audio.many_signals import Heard, Voices, hear
from dispatchai.calls.events import EventType
from dispatchai.engine import agent
from dispatchai.engine.app import App
from dispatchai.engine.fetch import Batch, Fetch
from dispatchai.kafka.topics import Topic
from dispatchai.records import AudioFrame, CallEvent, Signal, SignalState, decode_as, encode
from dispatchai.records.columns import encode_columns
from dispatchai.records.frames import decode_frame, decode_frames

NAME: Final = "signals"


def hear_frames(call_id: str, state: SignalState | None, frames: Sequence[AudioFrame]) -> agent.Stepped[SignalState]:
    """The pure step over the frames of one call, with its signals as outputs."""
    stepped = signals.step(state, frames)
    outputs = [agent.Output(Topic.SIGNALS, encode(signal)) for signal in stepped.signals]
    return agent.Stepped(stepped.state, outputs, snapshot=stepped.snapshot)


def follow_events(call_id: str, state: SignalState | None, events: Sequence[CallEvent]) -> agent.Stepped[SignalState]:
    """Of a call's events only the one counts after which its state is given up."""
    return agent.Stepped(None if any(event.type == EventType.EXPIRED for event in events) else state)


class SignalStates:
    """The states of all calls: of those that are being heard in `Voices`, of the others as they are. The engine's
    `Rows`, and what it keeps for `agent.apply`."""

    def __init__(self, app: App, partitions: int) -> None:
        self.name = NAME
        self.voices = Voices()
        self._others: dict[int, SignalState] = {}
        self.rows = app.columnar_states(NAME, self, partitions=partitions)

    # ---- the engine's rows -----------------------------------------------------------------------------------------

    def load(self, row: int, value: bytes) -> None:
        """Take the state of a snapshot into `row`. Raises DecodeError."""
        self._set(row, decode_as(SignalState, value))

    def save(self, rows: Sequence[int]) -> list[bytes | None]:
        """The states in `rows` as snapshots; None where there is none."""
        usual = [row for row in rows if self.voices.is_set(row) and self.voices.has_one_stream(row)]
        made = encode_columns(SignalState.__name__, self.voices.states(usual), len(usual))
        saved: dict[int, bytes] = dict(zip(usual, made, strict=True))
        for row in rows:
            if row not in saved and (state := self._state(row)) is not None:
                saved[row] = encode(state)
        return [saved.get(row) for row in rows]

    def clear(self, row: int) -> None:
        """Forget what is in `row`."""
        self.voices.clear(row)
        self._others.pop(row, None)

    # ---- by key ----------------------------------------------------------------------------------------------------

    def get(self, key: str) -> SignalState | None:
        """The state of a call, or None. Without effect on memory. Raises DecodeError for a snapshot of the future."""
        row = self.rows.find([key.encode()])[0]
        if row >= 0:
            return self._state(int(row))
        stored = self.rows.stored(key)
        return None if stored is None else decode_as(SignalState, stored)

    def put(self, key: str, state: SignalState | None, tp: TP, offset: int, *, snapshot: bool) -> None:
        """Set the state of a call as it is after the records of `tp` from `offset` on; None deletes it."""
        if state is None and self.get(key) is None:
            return
        rows = self.rows.rows(tp, [key.encode()])
        row = int(rows[0])
        if state is None:
            self.clear(row)
        else:
            self._set(row, state)
        self.rows.applied(tp, rows, np.array([offset]))
        if snapshot:
            self.rows.want(rows, at_once=True)

    def _state(self, row: int) -> SignalState | None:
        return self.voices.state(row) if self.voices.is_set(row) else self._others.get(row)

    def _set(self, row: int, state: SignalState) -> None:
        self._others.pop(row, None)
        if not self.voices.set(row, state):
            self._others[row] = state


class SignalsAgent:
    """Applies fetches to the states."""

    def __init__(self, app: App, partitions: int) -> None:
        self._app = app
        self.states = SignalStates(app, partitions)
        self._latency = app.metrics.stage("frame_to_signal")

    async def process(self, fetch: Fetch) -> None:
        """Apply what one fetch brought of either topic."""
        if fetch.batches[0].tp.topic == Topic.CALL_EVENTS:
            for batch in fetch.batches:
                await agent.apply(
                    self._app, self.states, batch, decode=partial(decode_as, CallEvent), step=follow_events
                )
            return
        records = [record for batch in fetch.batches for record in batch.records]
        keys = [record.key for record in records]
        columns = decode_frames([record.value or b"" for record in records])
        heard = hear(columns)
        rows = self.states.rows.find(keys)
        usual = heard.usual & self.states.voices.go_on(rows, columns)
        if not usual.all():
            # One record that needs care takes the others of its call with it: they must stay in their order.
            usual &= ~np.isin(rows, rows[~usual])
            await self._hear_one_by_one(fetch, ~usual)
        await self._hear_together(fetch, rows, heard, usual)
        self._latency.observe_many(np.maximum(0.0, time.time() - columns.captured_at[usual] / 1e6))

    async def _hear_one_by_one(self, fetch: Fetch, chosen: npt.NDArray[np.bool_]) -> None:
        """Apply the `chosen` records of a fetch call by call; with one of a call all of its records are chosen."""
        start = 0
        for batch in fetch.batches:
            end = start + len(batch.records)
            records = tuple(batch.records[index] for index in np.flatnonzero(chosen[start:end]))
            start = end
            if records:
                await agent.apply(
                    self._app, self.states, Batch(batch.tp, records), decode=decode_frame, step=hear_frames
                )

    async def _hear_together(
        self, fetch: Fetch, rows: npt.NDArray[np.int64], heard: Heard, usual: npt.NDArray[np.bool_]
    ) -> None:
        """Apply the usual frames of a fetch, `rows` of whose records says their calls."""
        states = self.states.rows
        if not usual.all():
            heard = heard.only(usual[heard.record])
        of_frames = rows[heard.record]
        step = self.states.voices.step(of_frames, heard)
        outputs: dict[int, list[tuple[bytes, bytes | None]]] = defaultdict(list)
        signals = encode_columns(Signal.__name__, step.signals, len(step.signalled))
        for row, signal in zip(step.signalled.tolist(), signals, strict=True):
            outputs[states.partition(row)].append((states.key(row), signal))
        # Outputs before the states: a snapshot of them covers what was sent by then.
        await self._app.emitter.ready()
        for partition, made in outputs.items():
            self._app.emitter.send_soon(Topic.SIGNALS, partition, made, timestamp_ms=time.time_ns() // 1_000_000)
        self.states.voices.keep(step)
        ends = np.cumsum([len(batch.records) for batch in fetch.batches])
        cuts = np.searchsorted(heard.record, [0, *ends])
        for number, batch in enumerate(fetch.batches):
            here = slice(cuts[number], cuts[number + 1])
            within = heard.record[here] - (ends[number] - len(batch.records))
            states.applied(batch.tp, of_frames[here], batch.offsets()[within])
        states.want(step.signalled)


def make(app: App, partitions: int) -> SignalStates:
    """Make the agent."""
    made = SignalsAgent(app, partitions)
    agent.run_fetches(app, NAME, (Topic.AUDIO_FRAMES, Topic.CALL_EVENTS), made.process)
    return made.states
