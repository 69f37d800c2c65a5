"""One seed from its first call to its verdict.

Decides the order: start, call and disturb, let everything settle, compare. Leaves a folder that shows what happened.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import orjson

from dispatchai.app import SPEECH, WORKER
from dispatchai.engine.app import use_uvloop
from dispatchai.kafka.readiness import wait_until_ready
from dispatchai.kafka.topics import Topic, Topics
from dispatchai.records import AudioFrame, CallEvent, CallPacket
from dispatchai.simulator import CallerAudio, CallReport, SimulatedCarrier, Timing, WebhookPolicy, load
from dispatchai.speech.engines import RECORDINGS
from tests.crash import verdict as verdicts
from tests.crash.oracle import Expected, expected
from tests.crash.processes import READY_S, System, system
from tests.crash.recorded import Reader, Recorded
from tests.crash.schedule import Group, Kind, PlannedCall, Strike, Victim, calls, schedule
from tests.crash.verdict import SLACK_S, Verdict, compare, run_differences
from tests.support.callers import CALLED_NUMBER, CALLERS

FRAMES_PER_S: Final = 50
FRAME_BYTES: Final = 160

DISTURBED_AFTER_S: Final = 12.0
"""How long processes are hit after the last caller would have hung up in an undisturbed run."""

PATIENCE: Final = Timing(answer_s=90.0, stream_s=90.0)
"""How long a caller waits. Several kills in a row can take half a minute, and a caller who gives up leaves less to
compare."""

PERSISTENT: Final = WebhookPolicy(attempts=8)
"""A minute of attempts: longer than any schedule stops the gateway or the broker."""

SETTLE_S: Final = 90.0
"""How long everything may take after the last strike and the last hangup: it includes the deadline of 20 s, the silence
after it, a session timeout, and the start of a process. Records that are missing by then do not come."""

KAFKA_AWAY_S: Final = 30.0
"""How long Kafka may take to be back after a strike, on a busy machine."""

REPAIR_S: Final = 15.0
"""How long the owner of a partition may take to write again what a late request of a former owner has overwritten
(`dispatchai.engine.late_writes`). Kafka compacts no sooner than half a minute after a record was written."""

LOOK_S: Final = 0.2
"""Pause between two looks at committed offsets, for which there is no event."""


@dataclass(frozen=True, slots=True)
class Options:
    """The options of a run."""

    seed: int
    groups: frozenset[Group]
    apache: bool
    folder: Path
    calls: int = 12
    unsafe: str | None = None


@dataclass(slots=True)
class Outcome:
    """The outcome of a seed."""

    seed: int
    strikes: tuple[Strike, ...]
    verdict: Verdict
    seconds: float = 0.0
    settled_s: float = 0.0
    """Seconds from the last strike or hangup until everything was processed."""
    exits: list[str] = field(default_factory=list)
    packets: dict[str, CallPacket] = field(default_factory=dict)
    """The last packet of each caller, by the caller's number."""
    recorded: Counts | None = None


@dataclass(frozen=True, slots=True)
class Counts:
    """The amount of records."""

    events: int
    frames: int


async def run(options: Options, undisturbed: Mapping[str, CallPacket] | None = None) -> Outcome:
    """Run a seed. If `undisturbed` is given, its packets must equal those. Raises RuntimeError if nothing starts."""
    began = time.monotonic()
    planned = calls(options.seed, options.calls)
    until_s = max(call.at_s + call.seconds for call in planned) + DISTURBED_AFTER_S
    strikes = schedule(options.seed, options.groups, until_s)
    outcome = Outcome(options.seed, strikes, Verdict())
    options.folder.mkdir(parents=True, exist_ok=True)
    (options.folder / "schedule.txt").write_text("".join(f"{strike}\n" for strike in strikes), encoding="utf-8")
    network = Group.NETWORK in options.groups
    async with system(options.folder, apache=options.apache, network=network, unsafe=options.unsafe) as running:
        reports, first_call_at = await _call_and_strike(running, planned, strikes, options.folder)
        quiet = time.monotonic()
        await wait_until_ready(running.connection, READY_S)  # the broker may have been the last to be killed
        async with Reader(running.connection, Topics.load()) as reader:
            wanted, outcome.verdict = await _settle(running, reader, reports, _lossy_from(strikes, first_call_at))
            outcome.settled_s = time.monotonic() - quiet
            outcome.packets = _last_packets(reader.recorded, reports)
            reader.recorded.dump(options.folder / "records.txt")
            outcome.recorded = _count(reader.recorded, reports)
        outcome.exits = running.exits
        if all(strike.victim is not Victim.BROKER for strike in strikes):
            # A process that leaves while Kafka is away cannot leave in order.
            outcome.verdict.add(running.bad_leaves)
    if undisturbed is not None:
        outcome.verdict.add(run_differences(undisturbed, outcome.packets))
    outcome.seconds = time.monotonic() - began
    _leave_trace(options.folder, outcome, reports, wanted)
    return outcome


def run_alone(options: Options, reference: Mapping[str, CallPacket] | None) -> Outcome:
    """Run a seed in this process, with a new folder."""
    use_uvloop()
    shutil.rmtree(options.folder, ignore_errors=True)
    return asyncio.run(run(options, reference))


def end_with_parent() -> None:
    """Let this process of the pool end with the one that made it, whatever the reason. Otherwise it would go on with
    its seed, and so would the system that it runs."""
    parent = multiprocessing.parent_process()
    if parent is None:
        raise RuntimeError("this process belongs to no pool")

    def watch(parent: multiprocessing.process.BaseProcess) -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, args=(parent,), name="parent", daemon=True).start()


async def _call_and_strike(
    running: System, planned: Collection[PlannedCall], strikes: Collection[Strike], folder: Path
) -> tuple[list[CallReport], float]:
    """Make the calls while the strikes fall, until both are over. Also returns when the first call was made, in seconds
    since the epoch."""
    audios = {name: load(RECORDINGS / name) for name in CALLERS}
    async with SimulatedCarrier(
        running.account, running.carrier_port, running.gateway_url, timing=PATIENCE, webhooks=PERSISTENT
    ) as carrier:
        began, began_at = asyncio.get_running_loop().time(), time.time()

        async def moment(at_s: float) -> None:
            await asyncio.sleep(max(0.0, began + at_s - asyncio.get_running_loop().time()))

        async def call(plan: PlannedCall) -> CallReport:
            await moment(plan.at_s)
            audio = audios[CALLERS[plan.number % len(CALLERS)]]
            placed = carrier.place_call(_cut(audio, plan.seconds), plan.from_number, CALLED_NUMBER, faults=plan.faults)
            return await placed.finished()

        with (folder / "strikes.log").open("w", encoding="utf-8") as log:

            async def strike(each: Strike) -> None:
                await moment(each.at_s)
                log.write(f"{time.strftime('%H:%M:%S', time.gmtime())} {each}\n")
                log.flush()
                await _strike(running, each)

            async with asyncio.TaskGroup() as group:
                for each in strikes:
                    group.create_task(strike(each))
                placed = [group.create_task(call(plan)) for plan in planned]
        return [task.result() for task in placed], began_at


def _lossy_from(strikes: Sequence[Strike], first_call_at: float) -> list[float]:
    """For each end of the gateway the time from which it may have held frames, or its sockets: a little before, or
    before Kafka went away."""
    away = [strike for strike in strikes if strike.victim is Victim.BROKER]
    ends = (Kind.KILL, Kind.RESTART)
    kills = [strike for strike in strikes if strike.victim is Victim.GATEWAY and strike.kind in ends]
    since = (
        min([kill.at_s, *(each.at_s for each in away if each.at_s < kill.at_s < each.ends_s + KAFKA_AWAY_S)])
        for kill in kills
    )
    return [first_call_at + at_s - SLACK_S for at_s in since]


async def _strike(running: System, strike: Strike) -> None:
    if strike.kind is Kind.CUT:
        if running.line is not None:
            await running.line.cut(strike.lasts_s)
        return
    process = running.processes[strike.victim]
    match strike.kind:
        case Kind.KILL:
            await process.kill(strike.lasts_s)
        case Kind.RESTART:
            await process.restart(strike.lasts_s)
        case Kind.FREEZE:
            await process.freeze(strike.lasts_s)
        case Kind.JOIN:
            await process.start()
        case Kind.LEAVE:
            await process.leave()


def _cut(audio: CallerAudio, seconds: float) -> CallerAudio:
    """The first `seconds` of a caller's audio."""
    size = round(seconds * FRAMES_PER_S) * FRAME_BYTES
    return CallerAudio(audio.name, (audio.pcmu * (size // len(audio.pcmu) + 1))[:size])


async def _settle(
    running: System, reader: Reader, reports: list[CallReport], lossy_from: Sequence[float]
) -> tuple[dict[str, Expected], Verdict]:
    """Follow the topics until no process has anything left to do, then compare their records.

    The committed offsets show which process still has something to read, or to conclude from it. They do not show what
    is to be written again: where records differ and more of them come within REPAIR_S, they are compared again.
    """
    deadline = time.monotonic() + SETTLE_S
    while True:
        await reader.read()
        is_late = time.monotonic() > deadline
        pending = await _pending(running, reader, reports)
        if (not pending and not await reader.read()) or is_late:
            wanted = {
                report.leg.call_session_id: await _expected(reader.recorded, report.leg.call_session_id)
                for report in reports
                if reader.recorded.stored(Topic.CALL_EVENTS, report.leg.call_session_id)
            }
            verdict = compare(reader.recorded, wanted, reports, lossy_from=lossy_from)
            verdict.add(pending)
            if verdict.problems and not is_late and await _more_within(REPAIR_S, reader):
                continue
            return wanted, verdict
        await asyncio.sleep(LOOK_S)


async def _more_within(wait_s: float, reader: Reader) -> bool:
    """Whether anything more is written within `wait_s`."""
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline:
        if await reader.read():
            return True
        await asyncio.sleep(LOOK_S)
    return False


async def _pending(running: System, reader: Reader, reports: Collection[CallReport]) -> list[str]:
    """The work that is left, one line each."""
    waits = await running.gateway_waits()
    pending = [] if waits == 0 else [f"the gateway holds {waits} records that Kafka does not have"]
    pending.extend(verdicts.to_come(reader.recorded, reports))
    for group in (WORKER, SPEECH):
        for tp, count in (await reader.lag(group)).items():
            pending.append(f"{group} has not committed the last {count} records of {tp.topic}/{tp.partition}")
    return pending


async def _expected(recorded: Recorded, call_id: str) -> Expected:
    events = recorded.values(Topic.CALL_EVENTS, call_id, CallEvent)
    return await expected(call_id, events, recorded.values(Topic.AUDIO_FRAMES, call_id, AudioFrame))


def _last_packets(recorded: Recorded, reports: Collection[CallReport]) -> dict[str, CallPacket]:
    packets: dict[str, CallPacket] = {}
    for report in reports:
        if made := recorded.values(Topic.DISPATCH_QUEUE, report.leg.call_session_id, CallPacket):
            packets[report.leg.from_number] = made[-1]
    return packets


def _count(recorded: Recorded, reports: Collection[CallReport]) -> Counts:
    call_ids = [report.leg.call_session_id for report in reports]
    return Counts(
        events=sum(len(recorded.stored(Topic.CALL_EVENTS, call_id)) for call_id in call_ids),
        frames=sum(len(recorded.stored(Topic.AUDIO_FRAMES, call_id)) for call_id in call_ids),
    )


def _leave_trace(folder: Path, outcome: Outcome, reports: list[CallReport], wanted: Mapping[str, Expected]) -> None:
    """The information about a failing seed beside the logs: problems, packets, and the carrier's side."""
    report = {
        "seed": outcome.seed,
        "problems": [str(problem) for problem in outcome.verdict.problems],
        "notes": dict(outcome.verdict.notes),
        "exits": outcome.exits,
        "strikes": [str(strike) for strike in outcome.strikes],
        "calls": [
            {
                "carrier": verdicts.without(each, ("webhook_answers_s",)),
                "expected": verdicts.without(one.packet, ()) if (one := wanted.get(each.leg.call_session_id)) else None,
                "found": verdicts.without(outcome.packets.get(each.leg.from_number), ()),
            }
            for each in reports
        ],
    }
    (folder / "outcome.json").write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2))
