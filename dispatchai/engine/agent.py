"""The loop of an agent around a pure step: take records, call the step, emit the outputs, keep the state.

An agent never raises. A record that cannot be decoded, and one on which the step fails, go to the dead-letter topic,
and the state stays as it was before that record. This is the one place that catches every exception.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol, TypeVar

import faust
import structlog
from faust.types import TP

from dispatchai.engine.app import App
from dispatchai.engine.effects import Effects
from dispatchai.engine.errors import AssignmentOverError
from dispatchai.engine.fetch import Batch, Fetch, Record, bytes_of, consumer_record, runs
from dispatchai.engine.keyed_state import KeyedStates
from dispatchai.kafka.dead_letters import UnreadableError

log = structlog.get_logger(__name__)

S = TypeVar("S")
R = TypeVar("R")

KEY_MAX_BYTES: Final = 1_024
"""Longest key of a record. A carrier's id of a call has at most 256 characters."""

STEP_RECORDS: Final = 64
STEP_BYTES: Final = 16_384
"""Most records of a key that are stepped at once, and their bytes: a second of a call has fewer. After as many, of one
key or of several, everything else in the process has its turn."""

SLICE_S: Final = 0.02
"""The same after this time, in seconds."""

PART_RECORDS: Final = 8_192
PART_BYTES: Final = 262_144
"""Most of a fetch that is applied before it counts as processed. What a fetch brings is seldom more, but a compressed
batch can be a hundred times as large, and would take longer than an agent may make no progress."""


@dataclass(frozen=True, slots=True)
class Output:
    """A record to write, with the key of its input. `value` None is a tombstone."""

    topic: str
    value: bytes | None


@dataclass(frozen=True, slots=True)
class Stepped(Generic[S]):
    """The result of a step over the records of one key.

    `state` None deletes the key. `effects` are carried out outside Kafka. `snapshot` asks for a snapshot soon.
    """

    state: S | None
    outputs: Sequence[Output] = ()
    effects: Sequence[Any] = ()
    snapshot: bool = True


class States(Protocol[S]):
    """The states of an agent: `KeyedStates`, or the agent's own on top of `ColumnarStates`."""

    name: str

    def get(self, key: str) -> S | None:
        """The state of `key`, or None."""

    def put(self, key: str, state: S | None, tp: TP, offset: int, *, snapshot: bool) -> None:
        """Set the state of `key` as it is after the records of `tp` from `offset` on; None deletes it."""


Step = Callable[[str, "S | None", Sequence[Any]], Stepped[S]]
"""(key, state, decoded records of the key in order) -> result. Pure."""


async def decoded(
    app: App, reader: str, decode: Callable[[bytes], R], tp: TP, records: Iterable[Record]
) -> list[tuple[Record, R]]:
    """The `records` of `tp` with their decoded values.

    A record without a key or a value, or whose key or value cannot be decoded, is sent to the dead-letter topic in the
    name of `reader`: agents read topics that are not compacted, where a tombstone means nothing.
    """
    good: list[tuple[Record, R]] = []
    for record in records:
        try:
            if not record.key:
                raise UnreadableError("a record without a key")
            if len(record.key) > KEY_MAX_BYTES:
                raise UnreadableError(f"a key of {len(record.key):,} bytes")
            record.key.decode()
            if record.value is None:
                raise UnreadableError("a tombstone in a topic that is not compacted")
            good.append((record, decode(record.value)))
        except ValueError as error:
            await app.emitter.dead_letter(consumer_record(tp, record), reader=reader, error=error)
    return good


async def apply(
    app: App,
    states: States[S],
    batch: Batch,
    *,
    decode: Callable[[bytes], Any],
    step: Step[S],
    effects: Effects[Any] | None = None,
) -> None:
    """Apply all records of `batch` to the states, key by key. The outputs of all keys are written together.

    Steps 1 and 2 of the order in `checkpoint.Checkpoint.write`. Other tasks run in between, and see the states as they
    were before. Raises AssignmentOverError.
    """
    turns = _Turns(app)
    applied: list[_Applied[S]] = []
    for key, of_key in batch.by_key():
        stepped_of_key: list[_Applied[S]] = []
        for records in runs(of_key, STEP_RECORDS, STEP_BYTES):
            inputs = await decoded(app, states.name, decode, batch.tp, records)
            if inputs and key is not None:
                await _step_key(app, states, batch.tp, key, inputs, step, stepped_of_key)
            await turns.took(records)
        applied += stepped_of_key
    outputs: dict[str, list[tuple[bytes, bytes | None]]] = defaultdict(list)
    for one in applied:
        for output in one.stepped.outputs:
            outputs[output.topic].append((one.key, output.value))
    # Outputs before states: a snapshot may be taken as soon as a state is replaced, and it covers the outputs sent by
    # then.
    if outputs:
        await app.emitter.ready()
    for topic, of_topic in outputs.items():
        app.emitter.send_soon(topic, batch.tp.partition, of_topic, timestamp_ms=time.time_ns() // 1_000_000)
    for one in applied:
        stepped, name = one.stepped, one.key.decode()
        if one.changed or stepped.outputs or stepped.effects:
            states.put(name, stepped.state, batch.tp, one.offset, snapshot=stepped.snapshot)
        if effects is not None:
            effects.submit(name, stepped.effects)


@dataclass(frozen=True, slots=True)
class _Applied(Generic[S]):
    """The result for records of `key`, the first of which is at `offset`. `changed`: the state differs from before."""

    key: bytes
    offset: int
    stepped: Stepped[S]
    changed: bool


class _Turns:
    """Lets other tasks run while a batch is applied."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._generation = app.lease.generation
        self._begin()

    def _begin(self) -> None:
        self._records, self._bytes, self._begun = 0, 0, time.perf_counter()

    async def took(self, records: Sequence[Record]) -> None:
        """`records` were stepped. Raises AssignmentOverError if partitions were reassigned meanwhile."""
        self._records += len(records)
        self._bytes += sum(map(bytes_of, records))
        is_short = time.perf_counter() - self._begun < SLICE_S
        if self._records < STEP_RECORDS and self._bytes < STEP_BYTES and is_short:
            return
        await asyncio.sleep(0)
        if self._app.lease.generation != self._generation:
            raise AssignmentOverError
        self._begin()


async def _step_key(
    app: App,
    states: States[S],
    tp: TP,
    key: bytes,
    inputs: Sequence[tuple[Record, Any]],
    step: Step[S],
    applied: list[_Applied[S]],
) -> None:
    """Call `step` with all `inputs` of `key`, and add the result to those of its records before, `applied`.

    If it fails, call it with each input alone and dead-letter those on which it fails: how records were batched must
    not decide which of them are dead-lettered.
    """
    name = key.decode()
    for run in (inputs, *((one,) for one in inputs if len(inputs) > 1)):
        try:
            before = applied[-1].stepped.state if applied else states.get(name)
            stepped = step(name, before, [value for _, value in run])
        except Exception as error:  # noqa: BLE001 - the boundary named at the top of the module
            if len(run) == 1:
                await app.emitter.dead_letter(consumer_record(tp, run[0][0]), reader=states.name, error=error)
            continue
        applied.append(_Applied(key, run[0][0].offset, stepped, stepped.state != before))
        if run is inputs:
            break


def run(
    app: App,
    states: KeyedStates[S],
    sources: Mapping[str, Callable[[bytes], Any]],
    *,
    step: Step[S],
    effects: Effects[Any] | None = None,
) -> None:
    """Create the agent that folds `sources` into `states` by `step`. `sources`: topics, each with its decoder."""
    if effects is not None:
        app.on_reset.append(effects.reset)

    async def process(fetch: Fetch) -> None:
        for batch in fetch.batches:
            await apply(app, states, batch, decode=sources[batch.tp.topic], step=step, effects=effects)

    run_fetches(app, states.name, tuple(sources), process, most=(PART_RECORDS, PART_BYTES))


def run_batches(app: App, name: str, topics: Sequence[str], process: Callable[[Batch], Awaitable[None]]) -> None:
    """Create the agent `name` that hands each batch of `topics` to `process`; see `run_fetches`."""

    async def process_each(fetch: Fetch) -> None:
        for batch in fetch.batches:
            await process(batch)

    run_fetches(app, name, topics, process_each)


def run_fetches(
    app: App,
    name: str,
    topics: Sequence[str],
    process: Callable[[Fetch], Awaitable[None]],
    *,
    most: tuple[int, int] | None = None,
) -> None:
    """Create the agent `name` that hands the records of `topics` to `process`, a fetch at a time.

    `most` are the records and bytes of a larger fetch that are handed over at once; each part counts as processed then.
    `process` must not raise, except AssignmentOverError: the rest of the fetch is then read again, here or elsewhere.
    Any other exception is a fault of the program, and the application fails at once.
    """
    source = app.topic(*topics, value_serializer="raw")
    counts = {topic: app.metrics.reader(name, topic) for topic in topics}
    app.stalls.reads(name, topics)

    async def process_all(fetches: faust.Stream[Fetch]) -> None:
        async for fetch in fetches:
            if fetch.generation != app.lease.generation:
                continue
            begun = time.perf_counter()
            with suppress(AssignmentOverError):
                for part in (fetch,) if most is None else fetch.parts(*most):
                    await process(part)
                    if fetch.generation != app.lease.generation:
                        break
                    for batch in part.batches:
                        app.stalls.processed(name, batch.tp, batch.last_offset + 1)
                else:
                    records = sum(len(batch.records) for batch in fetch.batches)
                    counts[fetch.batches[0].tp.topic].took(records, time.perf_counter() - begun)

    @app.agent(source, name=name)
    async def agent(fetches: faust.Stream[Fetch]) -> None:
        try:
            await process_all(fetches)
        except Exception as error:
            # Faust would leave the process running without this agent.
            log.error("agent_failed", agent=name, exc_info=error)
            app.failure.report(error)
            raise
