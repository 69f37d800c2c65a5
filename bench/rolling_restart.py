"""All processes are restarted one by one under live calls: `python -m bench.rolling_restart --calls 100 [--write]`.

Two workers, two speech processes and two gateways on Apache Kafka are restarted as docs/deploy.md prescribes, while
simulated calls are live. Then the calls end, and everything recorded is compared with what the carrier sent and with
an undisturbed processing of the same topics. A second run kills one of the processes instead of stopping it in order,
to show that the comparison of unclean starts can fail. Ends with 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Final

from bench import command
from bench.alerts import prometheus
from bench.restarts import ALERT, PROCESSES, Restart, System, system, unclean_starts
from dispatchai.app import SPEECH, WORKER
from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.topics import Topic, Topics
from dispatchai.records import AudioFrame, CallEvent, CallPacket
from dispatchai.simulator import (
    CallerAudio,
    CallReport,
    Faults,
    HangupSource,
    PlacedCall,
    Progress,
    SimulatedCarrier,
    Stage,
    StreamEnd,
    Timing,
    load,
)
from dispatchai.speech.engines import RECORDINGS
from dispatchai.triage.lost_audio import BETWEEN_S
from tests.crash.oracle import Expected, expected
from tests.crash.recorded import Reader, Recorded
from tests.crash.verdict import SLACK_S, Verdict, compare, to_come
from tests.support.callers import CALLED_NUMBER, CALLERS
from tests.support.kafka.measured import broker
from tests.support.processes import rounds
from tests.support.recorded_run import RecordedStream, carriers_id
from tests.support.report import machine, quantile, table

FRAME_MS: Final = 20
"""Length of a frame as the carrier sends it, and of those that a packet says are missing."""

AUDIO_S: Final = 900.0
"""How long a caller could speak: they hang up when all processes have been restarted."""

PATIENCE: Final = Timing(answer_s=90.0, stream_s=90.0)
"""How long a caller waits to be answered and heard, on a busy machine."""

LIVE_S: Final = 180.0
"""How long it may take until every call has an open media socket."""

AFTER_S: Final = 5.0
"""How long the calls go on after the last restart."""

HANGUPS_PER_S: Final = 10.0

SETTLE_S: Final = 180.0
"""How long the records may take that are to come after the last hangup, with the calls' deadline."""

LOOK_S: Final = 0.5

PROBLEMS_SHOWN: Final = 20

KILLED: Final = "worker-2"
"""The process that the second run kills."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A run: so many calls, placed over `ramp_s`, and a pause after each restart. `kill` names a process; with `alerts`
    Prometheus watches. Longer frames are fewer: a small machine carries more calls with them."""

    calls: int
    ramp_s: float
    pause_s: float
    kill: str | None = None
    alerts: bool = False
    frame_ms: int = FRAME_MS


@dataclass(frozen=True, slots=True)
class Heard:
    """What became of one call's audio, in frames of the caller, each of which lasts `frame_s`."""

    call_id: str
    spoken: int
    """From the first frame that was sent until the last one."""
    sent: int
    """Of these, the frames that the carrier sent. The others fell between two streams."""
    recorded: int
    counted: int
    """The frames of the packet's `audio_seconds`."""
    said_missing: int
    """The packet's `missing_frames`, which are 20 ms long, in frames of the caller."""
    complete: bool
    degraded: str | None
    gaps: tuple[int, ...]
    """The lengths of the runs of frames that are not recorded."""
    frame_s: float = FRAME_MS / 1000

    @property
    def unsaid(self) -> int:
        """The frames that are neither in the packet nor said to be missing."""
        return self.spoken - self.counted - self.said_missing

    def problems(self) -> Iterator[str]:
        """What the packet gets wrong, a line each."""
        if not self.complete:
            yield "its packet is not complete"
        if self.counted != self.recorded:
            yield f"{self.recorded} frames are recorded, its packet counts {self.counted}"
        if not self.said_missing and self.degraded is None and self.counted < self.sent:
            yield f"{self.sent} frames were sent, {self.counted} are in the packet, which says nothing of it"
        if self.unsaid > BETWEEN_S / self.frame_s * len(self.gaps):
            yield f"{self.unsaid} frames are missing beyond the {self.said_missing} that its packet says"


@dataclass(slots=True)
class Outcome:
    """What was seen in a run."""

    plan: Plan
    restarts: list[Restart] = field(default_factory=list)
    live: int = 0
    """Calls that were live from before the first restart until after the last one."""
    reports: Sequence[CallReport] = ()
    heard: list[Heard] = field(default_factory=list)
    fired: Sequence[str] | None = None
    """The alerts that fired from before the first restart until the calls had ended; None without Prometheus."""
    unclean_before: Mapping[str, float] = field(default_factory=dict)
    unclean_after: Mapping[str, float] = field(default_factory=dict)
    verdict: Verdict = field(default_factory=Verdict)
    queue: tuple[str, ...] = ()
    """The call ids in the order of the queue."""
    undisturbed: tuple[str, ...] = ()
    """The same of an undisturbed processing of the recorded topics."""

    @property
    def unclean(self) -> dict[str, float]:
        """By how much the metric of ProcessRestarts moved, for each process where it did."""
        moved = {name: after - self.unclean_before[name] for name, after in self.unclean_after.items()}
        return {name: change for name, change in moved.items() if change}

    @property
    def cut_off(self) -> int:
        """Sockets that the system closed."""
        return sum(stream.end is StreamEnd.LOST for report in self.reports for stream in report.streams)

    @property
    def opened_again(self) -> int:
        """Of these, those after which another stream of the call came."""
        return sum(stream.end is StreamEnd.LOST for report in self.reports for stream in report.streams[:-1])

    @property
    def hangups(self) -> int:
        """Commands to hang up that the carrier got, and calls that did not end by their caller's hangup."""
        return sum(
            sum(each.action == "hangup" for each in report.commands) + (report.hangup_source is not HangupSource.CALLER)
            for report in self.reports
        )

    def problems(self) -> Iterator[str]:
        """Everything that is wrong, a line each."""
        for restart in self.restarts:
            if not restart.killed and restart.exit_code != 0:
                yield f"{restart.process} was stopped in order and ended with {restart.exit_code}"
        if self.live != self.plan.calls:
            yield f"{self.live} of {self.plan.calls} calls were live during all restarts"
        for report in self.reports:
            if report.failure is not None:
                yield f"call {report.leg.call_session_id}: {report.failure}"
        if self.hangups:
            yield f"{self.hangups} hangups by the system"
        if self.cut_off != self.opened_again:
            yield f"{self.cut_off} sockets were closed by a restart, {self.opened_again} opened again"
        if len(self.heard) != self.plan.calls:
            yield f"{len(self.heard)} of {self.plan.calls} calls have a packet"
        for each in self.heard:
            yield from (f"call {each.call_id}: {text}" for text in each.problems())
        if self.fired is not None and ALERT in self.fired:
            yield f"the alert {ALERT} fired"
        wanted = {} if self.plan.kill is None else {self.plan.kill: 1.0}
        if self.unclean != wanted:
            yield f"{unclean_starts()} moved by {self.unclean or 'nothing'}, expected {wanted or 'nothing'}"
        if self.queue != self.undisturbed:
            yield "the queue has another order than that of an undisturbed processing"
        yield from map(str, self.verdict.problems)


# ---- the calls and the restarts --------------------------------------------------------------------------------------


class _Call:
    """A call and its stage."""

    def __init__(self, carrier: SimulatedCarrier, audio: CallerAudio, from_number: str, frame_ms: int) -> None:
        self.stage = Stage.RINGING
        self.placed: PlacedCall = carrier.place_call(
            audio, from_number, CALLED_NUMBER, self._follow, faults=Faults(frame_ms=frame_ms)
        )

    def _follow(self, progress: Progress) -> None:
        self.stage = progress.stage


async def run(connection: KafkaConnection, folder: Path, plan: Plan) -> Outcome:
    """Run `plan` on the empty topics at `connection`, with states and logs in `folder`.

    Raises RuntimeError or TimeoutError if it cannot begin.
    """
    outcome = Outcome(plan)
    async with system(connection, folder) as running:
        async with (
            prometheus(running.targets if plan.alerts else {}, folder / "prometheus") as watching,
            SimulatedCarrier(running.account, running.carrier_port, running.gateway_url, timing=PATIENCE) as carrier,
        ):
            await _call_and_restart(running, carrier, outcome)
            if watching is not None:
                outcome.fired = await watching.fired()
        say("all calls ended")
        async with Reader(connection, Topics.load()) as reader:
            pending = await _settle(reader, outcome.reports)
    say("settled")
    await _compare(outcome, reader.recorded)
    outcome.verdict.add(pending)
    return outcome


async def _call_and_restart(running: System, carrier: SimulatedCarrier, outcome: Outcome) -> None:
    plan = outcome.plan
    calls = await _place(carrier, plan)
    await _all_streamed(running, calls)
    outcome.unclean_before = await running.unclean_starts()
    for name in PROCESSES:
        outcome.restarts.append(await running.processes[name].restart(kill=name == plan.kill))
        say(f"{name} restarted")
        await asyncio.sleep(plan.pause_s)
    await _all_streamed(running, calls)
    outcome.live = sum(call.stage is Stage.STREAMING for call in calls)
    outcome.unclean_after = await running.unclean_starts()
    await asyncio.sleep(AFTER_S)
    for call in calls:
        call.placed.hang_up()
        await asyncio.sleep(1 / HANGUPS_PER_S)
    outcome.reports = [await call.placed.finished() for call in calls]


async def _place(carrier: SimulatedCarrier, plan: Plan) -> list[_Call]:
    audios = [_repeated(load(RECORDINGS / name)) for name in CALLERS]
    calls: list[_Call] = []
    for number in range(plan.calls):
        calls.append(_Call(carrier, audios[number % len(audios)], f"+1555010{number:04d}", plan.frame_ms))
        await asyncio.sleep(plan.ramp_s / plan.calls)
    return calls


def _repeated(audio: CallerAudio) -> CallerAudio:
    """A caller who says the same again for AUDIO_S."""
    return CallerAudio(audio.name, audio.pcmu * (round(AUDIO_S / audio.seconds) + 1))


async def _all_streamed(running: System, calls: Collection[_Call]) -> None:
    """Return when each call that has not ended has an open media socket. Raises TimeoutError."""
    async with asyncio.timeout(LIVE_S):
        async for _ in rounds(LOOK_S):
            live = sum(call.stage is not Stage.ENDED for call in calls)
            if await running.sockets_open() == live == sum(call.stage is Stage.STREAMING for call in calls):
                return


async def _settle(reader: Reader, reports: Sequence[CallReport]) -> list[str]:
    """Read until no process has anything left to do. Returns what is left after SETTLE_S, a line each."""
    deadline = time.monotonic() + SETTLE_S
    while True:
        await reader.read()
        pending = list(to_come(reader.recorded, reports))
        for group in (WORKER, SPEECH):
            pending += [f"{group} has not committed the last of {tp}" for tp in await reader.lag(group)]
        if (not pending and not await reader.read()) or time.monotonic() > deadline:
            return pending
        await asyncio.sleep(LOOK_S)


# ---- what is compared ------------------------------------------------------------------------------------------------


async def _compare(outcome: Outcome, recorded: Recorded) -> None:
    wanted: dict[str, Expected] = {}
    packets: list[CallPacket] = []
    for report in outcome.reports:
        call_id = report.leg.call_session_id
        frames = recorded.values(Topic.AUDIO_FRAMES, call_id, AudioFrame)
        wanted[call_id] = await expected(call_id, recorded.values(Topic.CALL_EVENTS, call_id, CallEvent), frames)
        if made := recorded.values(Topic.DISPATCH_QUEUE, call_id, CallPacket):
            packets.append(made[-1])
            outcome.heard.append(_heard(report, made[-1], frames, outcome.plan.frame_ms))
        outcome.verdict.add(_stream_problems(report, frames), call_id)
    lossy_from = [each.at - SLACK_S for each in outcome.restarts if each.process.startswith("gateway")]
    found = compare(recorded, wanted, outcome.reports, lossy_from=lossy_from)
    outcome.verdict.problems += found.problems
    outcome.verdict.notes += found.notes
    outcome.queue = _queue(packets)
    outcome.undisturbed = _queue([each.packet for each in wanted.values() if each.packet is not None])


def _queue(packets: Collection[CallPacket]) -> tuple[str, ...]:
    """The call ids in the order in which the page shows the packets."""
    ordered = sorted(packets, key=lambda each: (-each.ranking.weight, each.ranking.created_at, each.call_id))
    return tuple(packet.call_id for packet in ordered)


def _streams(frames: Collection[AudioFrame]) -> dict[str, RecordedStream]:
    streams: dict[str, RecordedStream] = {}
    for frame in frames:
        streams.setdefault(carriers_id(frame.stream_id), RecordedStream()).add(frame)
    return streams


def _stream_problems(report: CallReport, frames: Collection[AudioFrame]) -> Iterator[str]:
    """Each stream has a START and an END, and each that the caller ended has all its frames."""
    streams = _streams(frames)
    for sent in report.streams:
        found = streams.get(sent.stream_id, RecordedStream())
        if (found.starts, found.ends, found.after_end) != (1, 1, 0):
            yield f"stream {sent.stream_id}: {found.starts} START, {found.ends} END, {found.after_end} records after it"
        if sent.end is StreamEnd.STOPPED and len(set(found.sequences)) != sent.chunks:
            yield f"stream {sent.stream_id}: {len(set(found.sequences))} of {sent.chunks} frames, and nobody cut it"


def _heard(report: CallReport, packet: CallPacket, frames: Collection[AudioFrame], frame_ms: int) -> Heard:
    streams = _streams(frames)
    first = {stream.stream_id: stream.first_frame for stream in report.streams}
    recorded = sorted({first[name] + number - 1 for name, each in streams.items() for number in each.sequences})
    begin, end = report.streams[0].first_frame, report.streams[-1].first_frame + report.streams[-1].chunks
    edges = [begin - 1, *recorded, end]
    gaps = tuple(gap for before, after in pairwise(edges) if (gap := after - before - 1))
    return Heard(
        call_id=packet.call_id,
        spoken=end - begin,
        sent=sum(stream.chunks for stream in report.streams),
        recorded=len(recorded),
        counted=round(packet.audio.audio_seconds * 1000 / frame_ms),
        said_missing=round(packet.audio.missing_frames * FRAME_MS / frame_ms),
        complete=packet.complete,
        degraded=packet.degraded,
        gaps=gaps,
        frame_s=frame_ms / 1000,
    )


# ---- the table -------------------------------------------------------------------------------------------------------


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def _figures(outcome: Outcome) -> dict[str, str]:
    """The figures of a run, by what they are."""
    heard = outcome.heard
    gaps_s = [gap * each.frame_s for each in heard for gap in each.gaps]
    spoken, sent, counted = (sum(getattr(each, name) for each in heard) for name in ("spoken", "sent", "counted"))
    whole = sum(not each.said_missing and each.degraded is None for each in heard)
    unclean = ", ".join(f"{name} +{change:g}" for name, change in outcome.unclean.items())
    fired = ", ".join(f"`{name}`" for name in outcome.fired or ())
    seconds = [each.spoken * each.frame_s for each in heard]
    return {
        "calls · live during all restarts": f"{outcome.plan.calls} · {outcome.live}",
        "length of a call, s": f"{min(seconds, default=0):.0f}-{max(seconds, default=0):.0f}",
        "packets · complete · that miss no audio": f"{len(heard)} · {sum(each.complete for each in heard)} · {whole}",
        "frames spoken · sent · counted in packets": f"{spoken:,} · {sent:,} · {counted:,}",
        "frames that packets say are missing": f"{sum(each.said_missing for each in heard):,}",
        "frames of a call that are missing and not said, at most": f"{max((each.unsaid for each in heard), default=0)}",
        "commands to hang up, calls ended by the system": f"{outcome.hangups}",
        "sockets closed by restarts · opened again": f"{outcome.cut_off} · {outcome.opened_again}",
        "gap in the audio after that, median · longest, s": (
            f"{quantile(gaps_s, 0.5):.2f} · {max(gaps_s, default=0):.2f}" if gaps_s else "none"
        ),
        f"`{unclean_starts()}`": unclean or "unchanged",
        "alerts that fired": "Prometheus is not installed" if outcome.fired is None else fired or "none",
        "differences to an undisturbed processing · order of the queue": (
            f"{len(outcome.verdict.problems)} · {'equal' if outcome.queue == outcome.undisturbed else 'DIFFERENT'}"
        ),
    }


def _restarts(outcomes: Sequence[Outcome]) -> str:
    rows = [
        [
            name,
            *(
                f"{'SIGKILL' if each.killed else 'SIGTERM'}: {each.exit_code} · {each.stop_s:.1f} · {each.ready_s:.1f}"
                for outcome in outcomes
                for each in outcome.restarts
                if each.process == name
            ),
        ]
        for name in PROCESSES
    ]
    return table(["exit code · stopped after, s · ready after, s", *_names(outcomes)], rows)


def _names(outcomes: Sequence[Outcome]) -> list[str]:
    return ["in order" if outcome.plan.kill is None else f"{outcome.plan.kill} killed" for outcome in outcomes]


def section(outcomes: Sequence[Outcome]) -> str:
    """The section of the page."""
    figures = [_figures(outcome) for outcome in outcomes]
    rows = [[name, *(each[name] for each in figures)] for name in figures[0]]
    plan = outcomes[0].plan
    about = (
        f"`python -m bench.rolling_restart --calls {plan.calls}"
        f"{f' --frame-ms {plan.frame_ms}' if plan.frame_ms != FRAME_MS else ''}`: two workers, two speech processes "
        f"(scripted recogniser) and two gateways behind a proxy, on Apache Kafka; frames of {plan.frame_ms} ms. With "
        f"all calls live, each process gets SIGTERM and is started again when it has ended; the next one follows "
        f"{plan.pause_s:g} s after it is ready. Then the callers hang up. The other run kills one process instead. "
        f"Carrier, proxy, Prometheus and broker run on the same machine ({machine()})."
    )
    return "\n".join(
        ["## A rolling restart", "", about, "", _restarts(outcomes), "", table(["", *_names(outcomes)], rows)]
    )


async def _measure(arguments: argparse.Namespace) -> str:
    outcomes: list[Outcome] = []
    failed = False
    for kill in [None] if arguments.no_kill else [None, arguments.kill]:
        folder = Path(tempfile.mkdtemp(prefix="dispatchai-rolling-restart-"))
        async with broker(apache=True) as kafka:
            plan = Plan(
                arguments.calls, arguments.ramp, arguments.pause, kill, alerts=True, frame_ms=arguments.frame_ms
            )
            outcome = await run(kafka.connection, folder, plan)
        outcomes.append(outcome)
        say(section([outcome]))
        problems = list(outcome.problems())
        for text in problems[:PROBLEMS_SHOWN]:
            say(text)
        if problems:
            failed = True
            say(f"{len(problems)} problems; the logs of the processes are in {folder}")
        else:
            shutil.rmtree(folder)
    text = section(outcomes)
    if failed:
        print(text)
        raise SystemExit(1)
    return text


def main() -> None:
    """Command line."""
    parser = command.parser("bench.rolling_restart", __doc__)
    parser.add_argument("--calls", type=int, default=100, help="live calls (default %(default)s)")
    parser.add_argument(
        "--ramp", type=float, default=20.0, help="seconds over which they come in (default %(default)s)"
    )
    parser.add_argument("--pause", type=float, default=5.0, help="seconds after each restart (default %(default)s)")
    parser.add_argument(
        "--frame-ms", type=int, default=FRAME_MS, help="length of a frame: longer ones are fewer (default %(default)s)"
    )
    parser.add_argument("--kill", choices=PROCESSES, default=KILLED, help="killed in the second run (%(default)s)")
    parser.add_argument("--no-kill", action="store_true", help="no second run")
    arguments = parser.parse_args()
    command.run("bench.rolling_restart", arguments, _measure)


if __name__ == "__main__":
    main()
