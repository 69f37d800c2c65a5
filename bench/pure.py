"""What a record costs the pure steps of triage and speech, without Kafka, measured on the shipped recordings.

    python -m bench.pure [--runs 6] [--write]

The signals step measures each caller and the scripted recogniser hears him; their records go through the triage step
one by one, as in a worker that keeps up. For each record the least processor time of several runs counts, so that the
machine may do other work at the same time.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from dispatchai.audio import signals
from dispatchai.records import AudioFrame, CallEvent, FrameKind, Signal, Track, TriageState, Utterance, encode
from dispatchai.simulator import load
from dispatchai.speech.engines import RECORDINGS
from dispatchai.speech.recognizer import Ended
from dispatchai.speech.scripted import ScriptedRecognizer, load_script
from dispatchai.speech.session import CallSpeech, FrameRun, Streams
from dispatchai.triage.rules import Rules
from dispatchai.triage.scoring import Reading
from dispatchai.triage.step import step as triage_step
from tests.support.report import machine, table, write_section

CALLS: Final = (
    ("cardiac_arrest.wav", 1),
    ("kitchen_fire.wav", 1),
    ("noise_complaint.wav", 1),
    ("noise_complaint.wav", 8),
)
"""Callers, and how often each repeats everything: the last call takes two and a half minutes."""

FRAME_BYTES: Final = 160
T0: Final = 1_772_567_551_000_000
"""2026-03-03T19:52:31Z."""

ABOUT: Final = """\
## Pure steps

`python -m bench.pure`: microseconds of processor time a record. "step" folds and concludes, "assessment" is its Avro;
"snapshot" is the state's Avro, which a signal or a partial text asks for every fifth second only."""

Record = CallEvent | Signal | Utterance


@dataclass(frozen=True, slots=True)
class Cost:
    """The seconds that one record took."""

    step: float
    assessment: float
    snapshot: float
    due: bool
    """Whether the step asked for a snapshot."""


def frames_of(pcmu: bytes) -> list[AudioFrame]:
    """A stream with its START and END."""

    def frame(kind: FrameKind, sequence: int, payload: bytes = b"") -> AudioFrame:
        captured_at = T0 + 2_000_000 + sequence * 20_000
        return AudioFrame("s1", kind, Track.INBOUND, sequence, captured_at, "PCMU", 8000, payload, None)

    chunks = [pcmu[at : at + FRAME_BYTES] for at in range(0, len(pcmu), FRAME_BYTES)]
    heard = [frame(FrameKind.FRAME, number, chunk) for number, chunk in enumerate(chunks, 1)]
    return [frame(FrameKind.START, 0), *heard, frame(FrameKind.END, len(heard) + 1)]


def event(kind: str, at_s: float) -> CallEvent:
    """A webhook of the call."""
    moment = T0 + round(at_s * 1_000_000)
    payload = b'{"data": {"payload": {"direction": "incoming", "hangup_cause": "normal_clearing"}}}'
    return CallEvent(kind, kind, moment, moment + 40_000, "v3:call", "+15550101234", "+15550100911", 1, payload)


async def utterances_of(frames: Sequence[AudioFrame]) -> list[Utterance]:
    """The utterances that the speech agent writes for `frames`, each recognised when it arrived."""
    engine = ScriptedRecognizer(load_script(RECORDINGS / "script.json"))
    streams, session = Streams(engine), CallSpeech(None, engine.name, engine.accepts)
    written: list[Utterance] = []
    for frame in frames:
        step = session.frames([frame], frame.captured_at)
        streams.apply("call", step.commands)
        written += step.utterances
    async for heard in engine.events():
        step = session.event(heard, 0)
        written += step.utterances
        if isinstance(heard, Ended):
            break
    begun = frames[0].captured_at
    return [
        Utterance(
            **{name: getattr(one, name) for name in Utterance.__slots__} | {"recognized_at": begun + one.end_ms * 1000}
        )
        for one in written
    ]


def recorded(name: str, times: int) -> list[Record]:
    """The records of a call that triage reads, in the order of their times."""
    frames = frames_of(load(RECORDINGS / name).pcmu * times)
    texts = asyncio.run(utterances_of(frames))
    timed: list[tuple[int, Record]] = [(one.captured_at, one) for one in signals.step(None, frames).signals]
    timed += [(one.recognized_at, one) for one in texts]
    begin = [event("call.initiated", 0), event("call.answered", 1), event("streaming.started", 1.5)]
    ordered = [record for _, record in sorted(timed, key=lambda item: item[0])]
    return [*begin, *ordered, event("call.hangup", 2 + len(frames) / 50)]


def triage_costs(records: Sequence[Record], rules: Rules) -> list[Cost]:
    """The cost of each of `records` in the triage agent."""
    state: TriageState | None = None
    reading: Reading | None = None
    costs = []
    for record in records:
        began = time.thread_time()
        step = triage_step(state, [record], rules=rules, reading=reading)
        stepped = time.thread_time()
        for assessment in step.assessments:
            encode(assessment)
        encoded = time.thread_time()
        if step.state is not None:
            encode(step.state)
        costs.append(Cost(stepped - began, encoded - stepped, time.thread_time() - encoded, step.snapshot))
        state, reading = step.state, step.reading
    return costs


def speech_cost(frames: Sequence[AudioFrame], together: int) -> float:
    """The seconds for each frame when runs of `together` frames go through the session to the scripted recogniser."""
    engine = ScriptedRecognizer()
    streams, session = Streams(engine), CallSpeech(None, engine.name, engine.accepts)
    audio = [frame for frame in frames if frame.kind is FrameKind.FRAME]
    runs = [
        FrameRun("s1", Track.INBOUND, "PCMU", 8000, [one.sequence for one in part], [one.payload for one in part])
        for part in (audio[at : at + together] for at in range(0, len(audio), together))
    ]
    began = time.thread_time()
    for run in runs:
        streams.apply("call", session.frames([run], 0).commands)
    return (time.thread_time() - began) / len(audio)


def least(costs: Sequence[Sequence[Cost]]) -> list[Cost]:
    """The least of each record's costs over the runs."""
    return [
        Cost(min(one.step for one in of), min(one.assessment for one in of), min(one.snapshot for one in of), of[0].due)
        for of in zip(*costs, strict=True)
    ]


def text(runs: int) -> str:
    """The section."""
    rules = Rules.load()
    rows: list[list[str]] = []
    for name, times in CALLS:
        records = recorded(name, times)
        by_kind: defaultdict[str, list[Cost]] = defaultdict(list)
        for record, cost in zip(records, least([triage_costs(records, rules) for _ in range(runs)]), strict=True):
            kind = f"utterance {record.kind}" if isinstance(record, Utterance) else type(record).__name__.lower()
            by_kind[kind].append(cost)
        for kind, costs in by_kind.items():
            means = [
                sum(values) / len(costs) * 1e6
                for values in zip(*((c.step, c.assessment, c.snapshot) for c in costs), strict=True)
            ]
            due = sum(cost.due for cost in costs)
            rows.append([f"{name} × {times}", kind, f"{len(costs)}", *(f"{mean:.0f}" for mean in means), f"{due}"])
    frames = frames_of(load(RECORDINGS / "kitchen_fire.wav").pcmu)
    speech = [[f"{size}", f"{min(speech_cost(frames, size) for _ in range(runs)) * 1e6:.1f}"] for size in (1, 2, 4, 50)]
    return "\n\n".join(
        [
            f"{ABOUT} Measured on: {machine()}.",
            table(["call", "record", "number", "step", "assessment", "snapshot", "snapshots asked for"], rows),
            "A frame on its way through a call's session to the scripted recogniser, its measuring included:",
            table(["frames of a call together", "µs a frame"], speech),
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.pure", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=6, help="runs of each; the least counts (default %(default)s)")
    parser.add_argument("--write", action="store_true", help="put the table into docs/performance.md")
    given = parser.parse_args(arguments)
    section = text(given.runs)
    print(section)
    if given.write:
        write_section("bench.pure", section)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
