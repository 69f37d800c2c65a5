"""The loop of an agent over a pure step: take records, call the step, keep the state, emit the outputs.

An agent never raises: a record that cannot be decoded, and a record on which the step fails, go to the dead letters,
and the state stays as it was before it. This is the one place that catches all.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import faust
from faust.types import TP

from dispatchai.engine.app import App
from dispatchai.engine.effects import Effects
from dispatchai.engine.emitter import AssignmentOverError
from dispatchai.engine.keyed_state import States
from dispatchai.engine.transport import Batch, Fetch, Record, whole
from dispatchai.kafka.dead_letters import UnreadableError

S = TypeVar("S")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Output:
    """A record to be written, keyed as its input was. `value` None is a tombstone."""

    topic: str
    value: bytes | None


@dataclass(frozen=True, slots=True)
class Stepped(Generic[S]):
    """What a step made of the records of one key.

    `state` None deletes the key; `effects` are owed outside Kafka; `snapshot` asks for a snapshot soon.
    """

    state: S | None
    outputs: Sequence[Output] = ()
    effects: Sequence[Any] = ()
    snapshot: bool = True


class Keeps(Protocol[S]):
    """Where an agent's states are: `States`, or the agent's own over `RowStates`."""

    name: str

    def get(self, key: str) -> S | None:
        """The state of `key`, or None."""

    def put(self, key: str, state: S | None, tp: TP, offset: int, *, snapshot: bool) -> None:
        """Set the state of `key` as it is after the records of `tp` from `offset` on; None deletes it."""


Step = Callable[[str, "S | None", Sequence[Any]], Stepped[S]]
"""(key, state, decoded records of the key in order) -> what became of them. Pure."""


async def decoded(
    app: App, reader: str, decode: Callable[[bytes], R], tp: TP, records: Iterable[Record]
) -> list[tuple[Record, R]]:
    """Each record of `tp` with its value decoded; what has no key, no value or a broken one is buried."""
    good: list[tuple[Record, R]] = []
    for record in records:
        try:
            if not record.key:
                raise UnreadableError("a record without a key")
            record.key.decode()
            if record.value is None:
                continue  # a tombstone in a topic that is not compacted says nothing
            good.append((record, decode(record.value)))
        except ValueError as error:
            await app.emitter.dead_letter(whole(tp, record), reader=reader, error=error)
    return good


async def apply(
    app: App,
    states: Keeps[S],
    batch: Batch,
    *,
    decode: Callable[[bytes], Any],
    step: Step[S],
    effects: Effects[Any] | None = None,
) -> None:
    """Apply all of `batch` to the states, key by key. The outputs of all keys are written together."""
    made: list[_Made[S]] = []
    for key, records in batch.by_key():
        inputs = await decoded(app, states.name, decode, batch.tp, records)
        if inputs and key is not None:
            made += await _step_key(app, states, batch.tp, key, inputs, step)
    outputs: dict[str, list[tuple[bytes, bytes | None]]] = defaultdict(list)
    for one in made:
        for output in one.stepped.outputs:
            outputs[output.topic].append((one.key, output.value))
    # Outputs before the states: a snapshot may be taken of these as soon as they are there, and covers what was sent by
    # then.
    if outputs:
        await app.emitter.ready()
    for topic, of_topic in outputs.items():
        app.emitter.send_soon(topic, batch.tp.partition, of_topic, timestamp_ms=time.time_ns() // 1_000_000)
    for one in made:
        stepped, name = one.stepped, one.key.decode()
        if one.changed or stepped.outputs or stepped.effects:
            states.put(name, stepped.state, batch.tp, one.offset, snapshot=stepped.snapshot)
        if effects is not None:
            effects.submit(name, stepped.effects)


@dataclass(frozen=True, slots=True)
class _Made(Generic[S]):
    """What became of records of `key`, the first of which is at `offset`; `changed`: its state is another one."""

    key: bytes
    offset: int
    stepped: Stepped[S]
    changed: bool


async def _step_key(
    app: App, states: Keeps[S], tp: TP, key: bytes, inputs: Sequence[tuple[Record, Any]], step: Step[S]
) -> list[_Made[S]]:
    """Call `step` with all `inputs` of `key`; if it fails one by one, and bury those on which it does: which records
    came together must not decide which of them are buried."""
    name, made = key.decode(), list[_Made[S]]()
    for run in (inputs, *((one,) for one in inputs if len(inputs) > 1)):
        try:
            before = made[-1].stepped.state if made else states.get(name)
            stepped = step(name, before, [value for _, value in run])
        except Exception as error:  # noqa: BLE001 - the boundary named in the module's text
            if len(run) == 1:
                await app.emitter.dead_letter(whole(tp, run[0][0]), reader=states.name, error=error)
            continue
        made.append(_Made(key, run[0][0].offset, stepped, stepped.state != before))
        if run is inputs:
            break
    return made


def run(
    app: App,
    states: States[S],
    sources: Mapping[str, Callable[[bytes], Any]],
    *,
    step: Step[S],
    effects: Effects[Any] | None = None,
) -> None:
    """Make the agent named as `states` that folds `sources` by `step`: topics, each with what decodes its values."""
    if effects is not None:
        app.on_forget.append(effects.forget)

    async def process(batch: Batch) -> None:
        await apply(app, states, batch, decode=sources[batch.tp.topic], step=step, effects=effects)

    run_batches(app, states.name, tuple(sources), process)


def run_batches(app: App, name: str, topics: Sequence[str], process: Callable[[Batch], Awaitable[None]]) -> None:
    """Make the agent `name` that hands each batch of `topics` to `process`; see `run_fetches`."""

    async def process_each(fetch: Fetch) -> None:
        for batch in fetch.batches:
            await process(batch)

    run_fetches(app, name, topics, process_each)


def run_fetches(app: App, name: str, topics: Sequence[str], process: Callable[[Fetch], Awaitable[None]]) -> None:
    """Make the agent `name` that hands to `process` what each fetch brought of `topics`.

    `process` must not raise, but for AssignmentOverError: the rest of its batch is read again, here or elsewhere.
    """
    source = app.topic(*topics, value_serializer="raw")
    counts = {topic: app.metrics.reader(name, topic) for topic in topics}
    app.watch.reads(name, topics)

    @app.agent(source, name=name)
    async def agent(fetches: faust.Stream[Fetch]) -> None:
        async for fetch in fetches:
            if fetch.generation != app.lease.generation:
                continue
            begun = time.perf_counter()
            with suppress(AssignmentOverError):
                await process(fetch)
                if fetch.generation != app.lease.generation:
                    continue
                records = sum(len(batch.records) for batch in fetch.batches)
                counts[fetch.batches[0].tp.topic].took(records, time.perf_counter() - begun)
                for batch in fetch.batches:
                    app.watch.processed(name, batch.tp, batch.last_offset + 1)
