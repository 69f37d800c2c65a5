"""Cost of an utterance at the beginning and at the end of a very long call: `python -m bench.long_call [--write]`.

Steps the triage agent over the records of one call, as the worker does, and encodes what it writes. Then sends the
longest of the calls to a real worker on a broker, and measures how long other calls there wait meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Final

import aiokafka

from agents.triage import TriageAgent
from bench import command
from bench.signals import workers
from dispatchai.kafka.topics import Topic
from dispatchai.records import CallPacket, Signal, SignalKind, TriageState, Utterance, Word, decode_as, encode
from dispatchai.triage.ranking import decode_assessed, encode_live
from dispatchai.triage.rules import Rules
from tests.support.follow import Progress, follow
from tests.support.kafka.measured import Broker, broker
from tests.support.processes import used_by
from tests.support.recorded_call import event, partial, signal, speech_end, utterance
from tests.support.report import machine, table

SPAN: Final = 1_000
"""Utterances that are compared: the first and the last."""

LINES: Final = (
    "My husband has collapsed on the kitchen floor.",
    "He is not breathing and I do not know what to do.",
    "There is smoke coming from the second floor.",
    "We are at forty two Garden Street, next to the school.",
    "Please hurry, please.",
    "I can hear somebody shouting outside.",
    "No, he has not said anything since then.",
    "The door is locked and the windows are closed.",
)
"""Eight words each, on the average."""

PATIENCE_S: Final = 300.0

NEIGHBOURS: Final = 24
NEIGHBOURS_APART_S: Final = 0.02
"""Pause between two utterances of the other calls."""

ALONE_S: Final = 15.0

PER_S: Final = 200
"""Utterances of the long call in a second: some hundred times what anybody says."""

CALL: Final = "call"

Record = Utterance | Signal


def utterances(count: int, *, partials: int, lines: Sequence[str] = LINES) -> Iterator[list[Record]]:
    """The records of `count` utterances with the times of their words, each with `partials` and a signal before it."""
    for number, text in enumerate(islice(cycle(lines), count)):
        words = text.split()
        begun: list[Record] = [
            partial(number, " ".join(words[: 1 + len(words) * part // (partials + 1)]), 1 + part)
            for part in range(partials)
        ]
        whole = utterance(number, text)
        timed = tuple(Word(word, whole.start_ms, whole.end_ms, 0.9) for word in words)
        yield [signal(50 * (number + 1)), *begun, replace(whole, words=timed)]


@dataclass(slots=True)
class Span:
    """The cost of some utterances: processor seconds of the steps, and bytes of assessments and live entries."""

    utterances: int = 0
    cpu_s: float = 0.0
    assessments: int = 0
    live: int = 0

    def row(self) -> list[str]:
        """Figures of one utterance."""
        count = self.utterances or 1
        return [f"{self.cpu_s / count * 1e6:,.0f}", f"{self.assessments / count:,.0f}", f"{self.live / count:,.0f}"]


def measure(name: str, records: Sequence[list[Record]]) -> list[list[str]]:
    """The rows of one call: its first and its last utterances."""
    agent = TriageAgent(Rules.load(), on_initiated=lambda *_: None, on_hangup=lambda *_: None)
    state = agent.step(CALL, None, [event("call.initiated"), event("call.answered", 1)]).state
    spans = [Span(), Span(), Span()]
    for number, batch in enumerate(records):
        span = spans[0 if number < SPAN else 2 if number >= len(records) - SPAN else 1]
        begun = time.process_time()
        written = []
        for record in batch:
            stepped = agent.step(CALL, state, [record])
            state = stepped.state
            written += [output.value for output in stepped.outputs if output.value is not None]
        # Between the two spans only the state matters.
        live = [] if span is spans[1] else [encode_live(CALL, decode_assessed(value)) for value in written]
        span.cpu_s += time.process_time() - begun
        span.utterances += 1
        span.assessments += sum(map(len, written))
        span.live += sum(map(len, live))
    snapshot = f"{len(encode(state)) / 1000:,.0f}" if isinstance(state, TriageState) else "none"
    return [
        [name, f"first {SPAN:,}", *spans[0].row(), ""],
        [name, f"last {SPAN:,}", *spans[2].row(), snapshot],
    ]


class Neighbours:
    """Other calls at the same worker: one utterance after another, and how long each takes to its assessment."""

    def __init__(self, kafka: Broker, count: int) -> None:
        self._kafka = kafka
        self._calls = [f"neighbour-{number}" for number in range(count)]
        self._assessed: Counter[bytes] = Counter()
        self.delays_s: list[float] = []

    def on_assessment(self, record: Any, _: float) -> None:
        """The next record of `assessments`."""
        self._assessed[record.key] += 1

    async def speak(self, progress: Progress) -> None:
        """Let the calls speak in turn, until cancelled."""
        start = time.time_ns() // 1_000 - 5_000_000
        async with aiokafka.AIOKafkaProducer(**self._kafka.connection.producer_options()) as producer:

            async def send(call: str, topic: str, value: Any) -> None:
                key = call.encode()
                before = self._assessed[key]
                begun = time.monotonic()
                await producer.send_and_wait(topic, encode(value), key=key)
                await progress.until(lambda: self._assessed[key] > before, PATIENCE_S)
                self.delays_s.append(time.monotonic() - begun)

            for call in self._calls:
                for at_s, kind in enumerate(("call.initiated", "call.answered")):
                    await send(call, Topic.CALL_EVENTS, event(kind, at_s, start=start))
            self.delays_s.clear()
            for number, text in enumerate(cycle(LINES)):
                for call in self._calls:
                    await send(call, Topic.TRANSCRIPTS, utterance(number, text))
                    await asyncio.sleep(NEIGHBOURS_APART_S)

    def row(self, name: str) -> list[str]:
        """What was measured since the last row, in ms."""
        delays, self.delays_s = sorted(self.delays_s), []
        at = [delays[min(len(delays) - 1, int(len(delays) * share))] * 1000 for share in (0.5, 0.99, 1.0)]
        return [name, f"{len(delays)}", *(f"{ms:,.0f}" for ms in at)]


async def through_a_worker(kafka: Broker, records: Sequence[list[Record]]) -> str:
    """Send a call of `records` to a worker on which other calls are, and wait for its packet."""
    packets: list[CallPacket] = []
    neighbours = Neighbours(kafka, NEIGHBOURS)

    def on(record: Any, _: float) -> None:
        if record.key == CALL.encode() and record.value is not None:
            packets.append(decode_as(CallPacket, record.value))

    async with AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="dispatchai-bench-"))
        [worker] = await stack.enter_async_context(workers(kafka, 1, whole=True, folder=Path(folder)))
        assessed = await stack.enter_async_context(
            follow(kafka.connection, Topic.ASSESSMENTS, neighbours.on_assessment)
        )
        producer = await stack.enter_async_context(
            aiokafka.AIOKafkaProducer(**kafka.connection.producer_options(), linger_ms=5)
        )

        async def send(topic: str, values: Sequence[Any]) -> None:
            for value in values:
                await producer.send(topic, encode(value), key=CALL.encode())
            await producer.flush()

        async with asyncio.TaskGroup() as group:
            speaking = group.create_task(neighbours.speak(assessed))
            while not neighbours.delays_s:  # noqa: ASYNC110 - the worker starts
                await asyncio.sleep(0.1)
            await asyncio.sleep(ALONE_S)
            rows = [neighbours.row("alone")]
            # Just now: the worker gives up a call that began hours ago.
            start = time.time_ns() // 1_000 - 60_000_000
            begin = ("call.initiated", "call.answered", "streaming.started")
            await send(Topic.CALL_EVENTS, [event(kind, at_s, start=start) for at_s, kind in enumerate(begin)])
            await send(Topic.SIGNALS, [signal(0, SignalKind.START)])
            texts = [one for batch in records for one in batch if isinstance(one, Utterance)]
            half = len(texts) // 2
            for at in range(0, half, PER_S // 10):
                await send(Topic.TRANSCRIPTS, texts[at : min(half, at + PER_S // 10)])
                await asyncio.sleep(0.1)
            rows.append(neighbours.row(f"{half:,} utterances of the long call, {PER_S} a second"))
            begun = time.monotonic()
            await send(Topic.TRANSCRIPTS, texts[half:])
            await send(Topic.TRANSCRIPTS, [speech_end(after=len(records) + 1)])
            await send(Topic.SIGNALS, [signal(10**9, SignalKind.END)])
            await send(Topic.CALL_EVENTS, [event("call.hangup", 59, start=start, hangup_cause="normal_clearing")])
            async with follow(kafka.connection, Topic.DISPATCH_QUEUE, on) as progress:
                await progress.until(lambda: any(one.complete for one in packets), PATIENCE_S)
            took_s = time.monotonic() - begun
            rows.append(neighbours.row(f"{len(texts) - half:,} utterances of it at once"))
            speaking.cancel()
        used_by(worker.pid)  # raises if it has ended
    last = packets[-1]
    return "\n\n".join(
        (
            f"From an utterance of another call at the same worker to its assessment, on {kafka.name}; {NEIGHBOURS} "
            "other calls, in all partitions:",
            table(["beside", "utterances", "median, ms", "p99, ms", "longest, ms"], rows),
            f"The worker took {took_s:.0f} s for what was sent at once, and lived. The packet has "
            f"{len(last.nlp.transcript):,} characters of text and leaves {last.nlp.transcript_omitted:,} out.",
        )
    )


async def _measure(arguments: argparse.Namespace) -> str:
    calls = {
        "4 h, two words a second": list(utterances(3_600, partials=3)),
        "20,000 utterances": list(utterances(20_000, partials=0)),
        "20,000 utterances of one word": list(utterances(20_000, partials=0, lines=("Help.", "Fire!", "Yes.", "No."))),
    }
    rows = [row for name, records in calls.items() for row in measure(name, records)]
    async with broker(apache=arguments.apache) as kafka:
        lived = await through_a_worker(kafka, calls["20,000 utterances"])
    header = ["call", "utterances", "µs each", "bytes of assessments", "bytes of live entries", "kB of state"]
    return "\n\n".join(
        (
            "## A very long call\n`python -m bench.long_call --write`",
            "Processor time and bytes of one utterance with its partial texts and one signal, all assessments and live "
            "entries included.\nThe ranking agent writes at most four live entries a second.",
            table(header, rows),
            lived,
            machine(),
        )
    )


def main() -> None:
    """The command."""
    arguments = command.parser("bench.long_call", __doc__).parse_args()
    command.run("bench.long_call", arguments, _measure)


if __name__ == "__main__":
    main()
