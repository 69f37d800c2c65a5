"""The whole system for an hour, calls coming and going: `python -m bench.soak --minutes 60 --calls 30 --apache`.

Reports by period the memory of each process and how long the stages of the road take, and how much the memory grew
after the first ten minutes. States are deleted a minute after their call, so that their number is steady by then. The
simulated carrier runs in this process.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any, Final

from bench import command
from bench.arrivals import Arrivals
from bench.calls import PATIENCE_S, Stages
from dispatchai.kafka.topics import Topic
from dispatchai.simulator import CallerAudio, SimulatedAccount, SimulatedCarrier, Timing, load
from dispatchai.speech.engines import RECORDINGS
from tests.support import processes
from tests.support.callers import CALLED_NUMBER, CALLERS
from tests.support.follow import follow
from tests.support.kafka.measured import broker
from tests.support.report import machine, quantiles_ms, table

EXPIRY_S: Final = 60.0
"""How long a state is kept after its call. The default of an hour would be the whole soak."""

FINISHED_MAX: Final = 100
"""Finished calls that the page keeps: reached in the warm-up. The default is thousands, which takes hours to reach."""

LONGEST_S: Final = 600.0
"""Longer calls are cut, because this process holds their audio in memory."""

RAMP_CALLS_PER_S: Final = 2.0

AT_FIRST: Final = 2
"""The run begins with this many times its calls, most of which end in the warm-up. A process keeps the most memory that
it ever needed, and now and then there are by chance half as many calls again as on average: that would look like
growth."""

WARM_S: Final = 600.0
"""Growth counts from here on, or from half of the run if that is shorter."""

SAMPLE_S: Final = 5.0

BYTES_PER_S: Final = 8000
"""PCMU at 8 kHz."""


@dataclass(slots=True)
class Period:
    """What was measured in one period of the run."""

    until_s: float
    stages: Stages
    packets_s: list[float]
    memory: dict[str, list[int]]
    calls: int


@dataclass(slots=True)
class Soak:
    """The run in progress."""

    audios: Sequence[CallerAudio]
    stages: Stages = field(default_factory=Stages)
    memory: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    calls: int = 0
    failures: list[str] = field(default_factory=list)
    _hung_up: dict[str, float] = field(default_factory=dict)
    _packet: dict[str, float] = field(default_factory=dict)

    def on_packet(self, record: Any, _: float) -> None:
        """A record of `dispatch-queue`."""
        if record.value is not None:
            self._packet.setdefault(record.key.decode(), record.timestamp / 1000)

    def period(self, until_s: float) -> Period:
        """What was measured since the last period."""
        both = self._hung_up.keys() & self._packet.keys()
        packets_s = [self._packet.pop(call_id) - self._hung_up.pop(call_id) for call_id in both]
        ended = Period(until_s, self.stages, packets_s, dict(self.memory), self.calls)
        self.stages = Stages()
        self.memory, self.calls = defaultdict(list), 0
        return ended

    async def call(self, carrier: SimulatedCarrier, number: int, length_s: float) -> None:
        """Make one call, and wait for its end."""
        audio = self.audios[number % len(self.audios)]
        size = round(min(length_s, LONGEST_S) * 50) * (BYTES_PER_S // 50)
        pcmu = (audio.pcmu * (size // len(audio.pcmu) + 1))[:size]
        placed = carrier.place_call(
            CallerAudio(audio.name, pcmu), f"+1555010{number % 10_000:04d}", CALLED_NUMBER, lambda _: None
        )
        report = await placed.finished()
        self.calls += 1
        self._hung_up[report.leg.call_session_id] = report.hung_up_at
        if report.failure is not None:
            self.failures.append(report.failure)

    async def place(self, carrier: SimulatedCarrier, live: int) -> None:
        """Place calls until cancelled; calls in progress are then cancelled too."""
        began = time.monotonic()
        at_first = AT_FIRST * live
        planned_calls = Arrivals.load().plan(
            live,
            at_first / RAMP_CALLS_PER_S,
            Random(1),  # noqa: S311 - repeatable
            at_first=at_first,
        )
        async with asyncio.TaskGroup() as calls:
            for number, planned in enumerate(planned_calls):
                await asyncio.sleep(max(0.0, began + planned.at_s - time.monotonic()))
                calls.create_task(self.call(carrier, number, planned.length_s))

    async def sample(self, run: processes.Run) -> None:
        """Read the memory of the processes until cancelled."""
        async for _ in processes.rounds(SAMPLE_S):
            for name, used in run.used().items():
                self.memory[name].append(used.memory_bytes)


async def measure(arguments: argparse.Namespace) -> tuple[list[Period], list[str], str]:
    """One run. Returns its periods, the failures, and the broker's name."""
    length_s, every_s = arguments.minutes * 60, arguments.every_minutes * 60
    soak = Soak([load(RECORDINGS / name) for name in CALLERS])
    periods = []
    async with AsyncExitStack() as running:
        kafka = await running.enter_async_context(broker(apache=arguments.apache))
        folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="dispatchai-bench-soak-")))
        variables = {
            **processes.kafka_variables(kafka.connection),
            "SPEECH_ENGINE": "scripted",
            "CALL_EXPIRY_S": str(EXPIRY_S),
            "WEBHOOK_TOLERANCE_S": str(int(EXPIRY_S // 2)),
            "CONSOLE_FINISHED_MAX": str(FINISHED_MAX),
        }
        run = await running.enter_async_context(processes.run(folder, variables))
        for topic, on in (
            (Topic.CALL_EVENTS, lambda record, at: soak.stages.on_event(record, at)),
            (Topic.LIVE_CALLS, lambda record, at: soak.stages.on_live(record, at)),
            (Topic.SIGNALS, lambda record, at: soak.stages.on_signal(record, at)),
            (Topic.DISPATCH_QUEUE, soak.on_packet),
        ):
            await running.enter_async_context(follow(kafka.connection, topic, on))
        account = SimulatedAccount.load_or_create(run.settings.state_dir)
        carrier = await running.enter_async_context(
            SimulatedCarrier(
                account,
                run.info.carrier_port,
                run.info.gateway_url,
                timing=Timing(answer_s=PATIENCE_S, stream_s=PATIENCE_S),
            )
        )
        tasks = [asyncio.create_task(soak.place(carrier, arguments.calls)), asyncio.create_task(soak.sample(run))]
        began = time.monotonic()
        at_s = 0.0
        while at_s < length_s:
            at_s = min(at_s + every_s, length_s)
            await asyncio.wait(tasks, timeout=began + at_s - time.monotonic(), return_when=asyncio.FIRST_EXCEPTION)
            for task in tasks:
                if task.done():
                    task.result()
            periods.append(soak.period(at_s))
            print(" · ".join(row(periods[-1], names(periods))), file=sys.stderr, flush=True)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return periods, soak.failures, kafka.name


def names(periods: Sequence[Period]) -> list[str]:
    """The names of the processes that were measured."""
    return sorted({name for period in periods for name in period.memory})


def row(period: Period, processes_: Sequence[str]) -> list[str]:
    """A line of the table."""
    return [
        f"{period.until_s / 60:g}",
        f"{period.calls:,}",
        *(f"{statistics.median(period.memory.get(name) or [0]) / 1e6:.1f}" for name in processes_),
        quantiles_ms(period.stages.signals_s),
        quantiles_ms(period.stages.live_s),
        quantiles_ms(period.packets_s),
    ]


def growth(periods: Sequence[Period], name: str) -> str:
    """By how many % an hour the memory of a process grew from the first period after the warm-up to the last."""
    warm_s = min(WARM_S, periods[-1].until_s / 2)
    warm = next((one for before, one in pairwise(periods) if before.until_s >= warm_s), periods[-1])
    first, last = (statistics.median(period.memory.get(name) or [0]) for period in (warm, periods[-1]))
    hours = (periods[-1].until_s - warm.until_s) / 3600
    return f"{(last / first - 1) / hours * 100:+.1f} %" if hours and first else "n/a"


async def _measure(arguments: argparse.Namespace) -> str:
    periods, failures, kafka = await measure(arguments)
    seen = names(periods)
    header = [
        *("minute", "calls ended", *(f"{name}, MB" for name in seen)),
        *("frame → signal, p50 · p99", "webhook → live entry, p50 · p99", "hangup → packet, p50 · p99"),
    ]
    rows = [row(period, seen) for period in periods]
    rows.append(["growth an hour", "", *(growth(periods, name) for name in seen), "", "", ""])
    warm_minutes = min(WARM_S, periods[-1].until_s / 2) / 60
    options = f"--minutes {arguments.minutes:g} --calls {arguments.calls}{' --apache' if arguments.apache else ''}"
    about = (
        f"`python -m bench.soak {options}`: about {arguments.calls} calls at any time through gateway, Kafka, worker "
        f"and speech (scripted recogniser), coming and ending as fitted to real calls for service, and {AT_FIRST} "
        f"times as many at first, since a process holds the most that it needed; states are given up {EXPIRY_S:g} s "
        f"after their call, and the page keeps {FINISHED_MAX} finished ones, so that both are full before memory "
        f"counts. Memory is the median of a period, growth that from the first period after minute {warm_minutes:g} to "
        f"the last. The embedded broker keeps all records in memory. Calls that failed: {len(failures)}. Broker "
        f"({kafka}) and carrier run on the same machine ({machine()})."
    )
    return "\n".join(["## Soak", "", about, "", table(header, rows)])


def main() -> None:
    """Command line."""
    parser = command.parser("bench.soak", __doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="length of the run (default %(default)s)")
    parser.add_argument("--every-minutes", type=float, default=5.0, help="length of a period (default %(default)s)")
    parser.add_argument("--calls", type=int, default=30, help="calls at any time (default %(default)s)")
    command.run("bench.soak", parser.parse_args(), _measure)


if __name__ == "__main__":
    main()
