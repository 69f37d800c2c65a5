"""Cost of an utterance at the beginning and at the end of a very long call: `python -m bench.long_call [--write]`.

Steps the triage agent over the records of one call, as the worker does, and encodes what it writes. Then sends the
longest of the calls to a real worker on a broker, and waits for its packet.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
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
from tests.support.follow import follow
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


async def through_a_worker(kafka: Broker, records: Sequence[list[Record]]) -> str:
    """Send a call of `records` to a worker, wait for its packet, and say how long that took."""
    packets: list[CallPacket] = []

    def on(record: Any, _: float) -> None:
        if record.key == CALL.encode() and record.value is not None:
            packets.append(decode_as(CallPacket, record.value))

    with tempfile.TemporaryDirectory(prefix="dispatchai-bench-") as folder:
        async with workers(kafka, 1, whole=True, folder=Path(folder)) as [worker]:
            begun = time.monotonic()
            async with aiokafka.AIOKafkaProducer(**kafka.connection.producer_options(), linger_ms=5) as producer:

                async def send(topic: str, values: Sequence[Any]) -> None:
                    for value in values:
                        await producer.send(topic, encode(value), key=CALL.encode())
                    await producer.flush()

                # Just now: the worker gives up a call that began hours ago.
                start = time.time_ns() // 1_000 - 60_000_000
                begin = ("call.initiated", "call.answered", "streaming.started")
                await send(Topic.CALL_EVENTS, [event(kind, at_s, start=start) for at_s, kind in enumerate(begin)])
                await send(Topic.SIGNALS, [signal(0, SignalKind.START)])
                await send(Topic.TRANSCRIPTS, [one for batch in records for one in batch if isinstance(one, Utterance)])
                await send(Topic.TRANSCRIPTS, [speech_end(after=len(records) + 1)])
                await send(Topic.SIGNALS, [signal(10**9, SignalKind.END)])
                await send(Topic.CALL_EVENTS, [event("call.hangup", 59, start=start, hangup_cause="normal_clearing")])
                async with follow(kafka.connection, Topic.DISPATCH_QUEUE, on) as progress:
                    await progress.until(lambda: any(one.complete for one in packets), PATIENCE_S)
            took_s = time.monotonic() - begun
            used_by(worker.pid)  # raises if it has ended
    last = packets[-1]
    return (
        f"A worker on {kafka.name} took {took_s:.0f} s for a call of {len(records):,} utterances, sent at once, and "
        f"lived.\nIts packet has {len(last.nlp.transcript):,} characters of text and leaves "
        f"{last.nlp.transcript_omitted:,} out."
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
