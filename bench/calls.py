"""Many simulated calls at once through the whole system, on a faulty line: is each frame recorded once, and how fast.

    python -m bench.calls --calls 100 300 --seconds 30 [--apache | --kafka host:port] [--write]

Starts the system with the scripted recogniser, makes the calls, reads the topics and compares them with what was sent.
Ends with 1 if anything differs. The carrier and the comparison run in this process, on the same machine.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from dispatchai.calls.events import EventType
from dispatchai.engine.app import use_uvloop
from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.topics import Topic
from dispatchai.records.codec import decode_fields
from dispatchai.simulator import (
    CallerAudio,
    CallReport,
    Faults,
    Progress,
    SimulatedAccount,
    SimulatedCarrier,
    Stage,
    Timing,
    load,
)
from dispatchai.speech.engines import RECORDINGS
from tests.support import processes
from tests.support.callers import CALLED_NUMBER, CALLERS
from tests.support.follow import follow
from tests.support.kafka.node import LOADED, Node
from tests.support.recorded_run import Packets, Streams, command_differences, delays_s, differences, read_streams
from tests.support.report import machine, quantiles_ms, table, write_section

CARRIER: Final = "simulated carrier"
"""The name of this process among the others."""

LINE: Final = Faults(frame_duplicates=0.02, frame_swaps=0.02, frame_losses=0.01, command_failures=0.1)

RAMP_CALLS_PER_S: Final = 50.0
"""How fast the calls come in: 300 within six seconds, far beyond any dispatch centre's worst minute."""

PATIENCE_S: Final = 60.0
"""How long a caller waits to be answered and heard. It is long, so that delays show in the numbers."""

PACKETS_S: Final = 90.0
"""How long the run waits for packets after the last hangup: three times the deadline of a call."""

SAMPLE_S: Final = 1.0

PROBLEMS_SHOWN: Final = 20

ABOUT: Final = """\
## Calls through the whole system, on a bad line

`python -m bench.calls`: simulated calls through gateway, Kafka, worker and speech, with the scripted recogniser. 2 % of
frames come twice, 2 % swapped, 1 % never; 10 % of commands fail once. Then the topics are compared with what was sent:
each frame once and in order, gaps exactly where frames were lost, no command with two effects.
"""


@dataclass(frozen=True, slots=True)
class Options:
    """The options of a run."""

    calls: int
    seconds: float
    speed: float
    seed: int
    kafka: str | None
    apache: bool


@dataclass(slots=True)
class Stages:
    """How long the stages of the road took, read from the topics during the calls. Times in seconds."""

    received: dict[str, float] = field(default_factory=dict)
    """When the gateway received the webhook of each call that came in."""
    live: dict[str, float] = field(default_factory=dict)
    """When the first live entry of each call was written."""
    signals_s: list[float] = field(default_factory=list)
    """From the capture of a signal's frame until the signal was written."""

    def on_event(self, record: Any, _received_at: float) -> None:
        """A record of `call-events`."""
        _, event = decode_fields(record.value)
        if event["type"] == EventType.INITIATED:
            self.received.setdefault(record.key.decode(), event["received_at"] / 1_000_000)

    def on_live(self, record: Any, _received_at: float) -> None:
        """A record of `live-calls`."""
        if record.value is not None:
            self.live.setdefault(record.key.decode(), record.timestamp / 1000)

    def on_signal(self, record: Any, _received_at: float) -> None:
        """A record of `signals`."""
        _, signal = decode_fields(record.value)
        if signal["kind"] == "UPDATE":
            self.signals_s.append(record.timestamp / 1000 - signal["captured_at"] / 1_000_000)

    @property
    def live_s(self) -> list[float]:
        """From the webhook of a call that came in to its first live entry."""
        return [at - self.received[call_id] for call_id, at in self.live.items() if call_id in self.received]

    @asynccontextmanager
    async def followed(self, connection: KafkaConnection) -> AsyncIterator[None]:
        """Follow the topics inside this context: `live-calls` is compacted, so afterwards it is too late."""
        async with (
            follow(connection, Topic.CALL_EVENTS, self.on_event),
            follow(connection, Topic.LIVE_CALLS, self.on_live),
            follow(connection, Topic.SIGNALS, self.on_signal),
        ):
            yield


@dataclass(slots=True)
class Measured:
    """What a run showed. Times in seconds; `cpu` is processor time per second of the time in which all calls spoke."""

    options: Options
    broker: str = ""
    problems: list[str] = field(default_factory=list)
    frames: int = 0
    lost: int = 0
    requests: int = 0
    effects: int = 0
    webhooks_s: list[float] = field(default_factory=list)
    frames_s: list[float] = field(default_factory=list)
    complete: int = 0
    """Packets with all that belongs to them: the others were made at the call's deadline."""
    packets_s: list[float] = field(default_factory=list)
    stages: Stages = field(default_factory=Stages)
    cpu: dict[str, float] = field(default_factory=dict)
    frame_cpu_us: dict[str, float] = field(default_factory=dict)
    """Processor time for each frame, from the first call to the last packet, in microseconds."""
    memory_bytes: dict[str, int] = field(default_factory=dict)
    output: list[str] = field(default_factory=list)
    """The last lines that the system wrote: warnings and errors."""
    load: float = 0.0
    """Processes that wanted to run, on average, as the calls began: what else the machine was doing."""


def caller_audio(seconds: float) -> list[CallerAudio]:
    """The shipped callers, each repeated or cut to `seconds`."""
    size = round(seconds * 50) * 160
    audios = [load(RECORDINGS / name) for name in CALLERS]
    return [CallerAudio(audio.name, (audio.pcmu * (size // len(audio.pcmu) + 1))[:size]) for audio in audios]


async def measure(options: Options) -> Measured:
    """Makes the run and compares. Raises RuntimeError if the system does not start."""
    measured = Measured(options, load=os.getloadavg()[0])
    with tempfile.TemporaryDirectory(prefix="bench-calls-") as folder:
        async with system(options, Path(folder)) as (run, connection, measured.broker):
            async with measured.stages.followed(connection):
                before, own = run.used(), time.process_time()
                reports = await make_calls(run, options, measured)
                own = time.process_time() - own
                async with Packets(connection) as packets:
                    call_ids = [report.leg.call_session_id for report in reports]
                    missing = await packets.wait_for(call_ids, PACKETS_S)
                    await packets.drain()
            after = run.used()
            measured.output = list(run.output)
            streams = await read_streams(connection, call_ids)
    measured.problems += [f"call {call_id}: no packet within {PACKETS_S:g} s" for call_id in sorted(missing)]
    for report in reports:
        _compare(report, streams, packets, measured)
    spent = {name: after[name].cpu_s - before[name].cpu_s for name in before if name in after}
    for name, cpu_s in {**spent, CARRIER: own}.items():
        measured.frame_cpu_us[name] = cpu_s / max(1, measured.frames) * 1e6
    return measured


def _compare(report: CallReport, streams: Streams, packets: Packets, measured: Measured) -> None:
    call_id = report.leg.call_session_id
    recorded = streams.get(call_id, {})
    problems = [*differences(report, recorded), *command_differences(report)]
    if report.failure is not None:
        problems.append(report.failure)
    if call_id in packets.first:
        measured.complete += packets.first[call_id].packet.complete
        measured.packets_s.append(packets.first[call_id].recorded_at - report.hung_up_at)
    measured.problems += [f"call {call_id}: {problem}" for problem in problems]
    measured.frames += report.frames_sent
    measured.lost += sum(len(stream.lost) for stream in report.streams)
    measured.requests += sum(command.requests for command in report.commands)
    measured.effects += sum(command.effects for command in report.commands)
    measured.webhooks_s += report.webhook_answers_s
    measured.frames_s += delays_s(report, recorded)


@asynccontextmanager
async def system(options: Options, folder: Path) -> AsyncIterator[tuple[processes.Run, KafkaConnection, str]]:
    async with AsyncExitStack() as stack:
        variables = {"SPEECH_ENGINE": "scripted"}
        broker = "embedded broker"
        if options.apache:
            environment = {**os.environ, processes.MARK: uuid4().hex}
            kafka = await Node.prepare(folder, jvm=LOADED)
            await stack.enter_async_context(kafka.running(environment))
            variables |= {
                "KAFKA_BOOTSTRAP_SERVERS": kafka.connection.bootstrap_servers,
                processes.MARK: environment[processes.MARK],
            }
            broker = "Apache Kafka"
        elif options.kafka:
            variables["KAFKA_BOOTSTRAP_SERVERS"] = options.kafka
            broker = "given Kafka"
        run = await stack.enter_async_context(processes.run(folder / "state", variables))
        yield run, KafkaConnection(run.info.bootstrap_servers, embedded=broker == "embedded broker"), broker


async def make_calls(
    run: processes.Run, options: Options, measured: Measured, audios: Sequence[CallerAudio] = ()
) -> list[CallReport]:
    """Make the calls, with `audios` or else those of the shipped callers."""
    account = SimulatedAccount.load_or_create(run.settings.state_dir)
    audios = audios or caller_audio(options.seconds)
    speaking: set[int] = set()
    all_speak, one_ended = asyncio.Event(), asyncio.Event()

    def observer(number: int) -> Callable[[Progress], None]:
        def observe(progress: Progress) -> None:
            match progress.stage:
                case Stage.STREAMING:
                    speaking.add(number)
                    if len(speaking) == options.calls:
                        all_speak.set()
                case Stage.ENDED:
                    one_ended.set()
                case _:
                    pass

        return observe

    async with SimulatedCarrier(
        account,
        run.info.carrier_port,
        run.info.gateway_url,
        timing=Timing(speed=options.speed, answer_s=PATIENCE_S, stream_s=PATIENCE_S),
        faults=Faults(**{**{name: getattr(LINE, name) for name in LINE.__slots__}, "seed": options.seed}),
    ) as carrier:
        sampling = asyncio.create_task(_sample(run, measured, all_speak, one_ended))
        placed = []
        began = time.monotonic()
        for number in range(options.calls):
            placed.append(
                carrier.place_call(
                    audios[number % len(audios)], f"+1555010{number % 10_000:04d}", CALLED_NUMBER, observer(number)
                )
            )
            await asyncio.sleep(max(0.0, began + (number + 1) / RAMP_CALLS_PER_S - time.monotonic()))
        reports = [await call.finished() for call in placed]
        all_speak.set()
        await sampling
    return reports


async def _sample(run: processes.Run, measured: Measured, all_speak: asyncio.Event, one_ended: asyncio.Event) -> None:
    """Record what each process uses from the moment when all callers speak until the first call ends."""
    await all_speak.wait()
    first, first_own, began = run.used(), time.process_time(), time.monotonic()
    await one_ended.wait()
    last, last_own, length_s = run.used(), time.process_time(), time.monotonic() - began
    if length_s < SAMPLE_S:
        return
    measured.cpu = processes.cores(first, last, length_s)
    measured.cpu[CARRIER] = (last_own - first_own) / length_s
    measured.memory_bytes = {name: each.memory_bytes for name, each in last.items()}


def rows(measured: Measured) -> dict[str, str]:
    """The numbers of a run, by their names."""
    options = measured.options
    return {
        "calls at once": f"{options.calls}",
        "each speaks, at times real time": f"{options.seconds:g} s, {options.speed:g}x",
        "frames a second": f"{options.calls * 50 * options.speed:,.0f}",
        "broker": measured.broker,
        "load of the machine before": f"{measured.load:.1f}",
        "frames sent (repeats included) · lost on the line": f"{measured.frames:,} · {measured.lost:,}",
        "requests · effects of commands": f"{measured.requests:,} · {measured.effects:,}",
        "differences between sent and recorded": f"{len(measured.problems)}",
        "calls with a packet · whose first was complete": f"{len(measured.packets_s):,} · {measured.complete:,}",
        "webhook answered, p50 · p99": quantiles_ms(measured.webhooks_s),
        "frame due at the carrier → at the gateway, p50 · p99": quantiles_ms(measured.frames_s),
        "frame at the gateway → signal, p50 · p99": quantiles_ms(measured.stages.signals_s),
        "webhook received → live entry, p50 · p99": quantiles_ms(measured.stages.live_s),
        "hangup → packet, p50 · p99": quantiles_ms(measured.packets_s),
        **{f"cores while all speak: {name}": f"{cores:.2f}" for name, cores in sorted(measured.cpu.items())},
        **{f"processor time a frame: {name}": f"{us:.0f} µs" for name, us in sorted(measured.frame_cpu_us.items())},
        **{f"memory: {name}": f"{size / 1e6:.0f} MB" for name, size in sorted(measured.memory_bytes.items())},
    }


def text(runs: Sequence[Measured]) -> str:
    """A section about `runs`, one column each."""
    columns = [rows(measured) for measured in runs]
    names = list(dict.fromkeys(name for column in columns for name in column))
    header = ["", *(f"run {number}" for number in range(1, len(runs) + 1))]
    lines = [[name, *(column.get(name, "") for column in columns)] for name in names]
    return f"{ABOUT}Carrier and broker run on the same machine ({machine()}).\n\n{table(header, lines)}"


def _calls_at(value: str) -> tuple[int, float]:
    calls, _, speed = value.partition("@")
    return int(calls), float(speed or 1)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.calls", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--calls",
        type=_calls_at,
        nargs="+",
        default=[(300, 1.0)],
        metavar="N[@SPEED]",
        help="calls at one time, and how many times faster than real time they speak; a run for each (default 300@1)",
    )
    parser.add_argument("--seconds", type=float, default=30.0, help="how long each caller speaks (default %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the faults (default %(default)s)")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--kafka", metavar="HOST:PORT", help="a Kafka that runs; default is the embedded broker")
    where.add_argument("--apache", action="store_true", help="start Apache Kafka for the run (Java, Maven)")
    parser.add_argument("--write", action="store_true", help="put the table into docs/performance.md")
    given = parser.parse_args(arguments)
    use_uvloop()
    runs = []
    for calls, speed in given.calls:
        options = Options(calls, given.seconds, speed, given.seed, given.kafka, given.apache)
        measured = asyncio.run(measure(options))
        runs.append(measured)
        print(text([measured]), end="\n\n", flush=True)
        for problem in measured.problems[:PROBLEMS_SHOWN]:
            print(problem, file=sys.stderr)
        if measured.problems:
            print("\n".join(["", "The system's last warnings:", *measured.output[-20:]]), file=sys.stderr)
    if given.write:
        write_section("calls", text(runs))
    return 1 if any(measured.problems for measured in runs) else 0


if __name__ == "__main__":
    raise SystemExit(main())
