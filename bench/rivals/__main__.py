"""The signals job on this project and on others, side by side: `python -m bench.rivals --apache [--write]`.

Each reads the same recorded frames, and writes the same signals (compared byte for byte) and a snapshot of a call's
state about once a second. A rival reads the beginning of all calls and is stopped (SIGSTOP). Then the topic is filled
with the rest of the calls, and the rival goes on and drains it. Counted is its processor time, threads included, from
there to the last record. The calls end after that: in calls of a few seconds their beginnings and ends would weigh more
than in calls of minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any, Final

import aiokafka
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from bench import command
from bench.frames import FRAMES_PER_S, Call
from bench.partition_queues import PartitionQueues
from bench.rivals import job
from dispatchai.audio import signals
from dispatchai.kafka.admin import apply
from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.topics import Topic, Topics
from dispatchai.process.child import Child
from dispatchai.records import AudioFrame, decode_as, encode
from dispatchai.records.avro_primitives import encode_long
from tests.support.follow import follow
from tests.support.kafka.measured import Broker, broker
from tests.support.paths import ROOT
from tests.support.processes import environment, rounds, used_by
from tests.support.report import machine, table

WARM_FRAMES: Final = 20
"""Frames of each call that a rival warms up with."""

MARKS: Final = 60
"""Calls that begin at the end of a part of the records: their signals show that everything before them was processed.
With this many, each of eight partitions gets one almost certainly."""

PATIENCE_S: Final = 600.0
"""How long the slowest rival may take to drain the topic on a busy machine."""

START_S: Final = 120.0
"""How long a rival may take to start, join its group and warm up."""

OUTPUT_LINES: Final = 40

POLL_S: Final = 0.05

_QUIX_ENVIRONMENT: Final = Path(__file__).parent / ".venv"
_QUIX_REQUIREMENTS: Final = Path(__file__).parent / "quix-requirements.txt"
_QUIX_PYTHON: Final = _QUIX_ENVIRONMENT / "bin" / "python"


@dataclass(frozen=True, slots=True)
class Rival:
    """How a rival is started, and its name in the table."""

    title: str
    module: str
    python: Path = Path(sys.executable)
    quix_state: str = ""


OURS: Final = "ours"

RIVALS: Final = {
    OURS: Rival("this project", "bench.worker"),
    "bare": Rival("bare aiokafka `getmany` loop, the same numpy", "bench.rivals.bare"),
    "quix": Rival(
        "Quix Streams, state in memory and written with each signal", "bench.rivals.quix", _QUIX_PYTHON, "signal"
    ),
    "quix-state": Rival(
        "Quix Streams, state read and written with each frame", "bench.rivals.quix", _QUIX_PYTHON, "frame"
    ),
    "faust": Rival("stock Faust", "bench.rivals.stock_faust"),
    "guide": Rival("the guide's loop over samples, on aiokafka", "bench.rivals.guide"),
}

Written = dict[str, list[bytes]]
"""Signals by call, in the order of their records."""

Records = Iterable[tuple[str, bytes]]
"""(call id, value) in the order of their times."""


class Frames:
    """The input of every rival, made again from the same numbers for each: calls that go on side by side."""

    def __init__(self, calls: int, frames_each: int, began_at: int) -> None:
        self.calls = [Call(f"call-{number:05d}", number) for number in range(calls)]
        self.frames_each = frames_each
        self._at = began_at

    @property
    def count(self) -> int:
        """The number of frames that are drained."""
        return len(self.calls) * self.frames_each

    def opening(self) -> Records:
        """The records with which the calls begin."""
        yield from ((call.call_id, call.start(self._at)) for call in self.calls)
        yield from self._frames(WARM_FRAMES)

    def main(self) -> Records:
        """The records with which they go on; the measurement is of these."""
        yield from self._frames(self.frames_each)

    def closing(self) -> Records:
        """The records with which they end."""
        yield from ((call.call_id, call.end(self._at)) for call in self.calls)

    def marks(self, name: str) -> Records:
        """Calls that only begin."""
        marks = (Call(f"mark-{name}-{number}", number) for number in range(MARKS))
        yield from ((mark.call_id, mark.start(self._at)) for mark in marks)

    def _frames(self, count: int) -> Records:
        for _ in range(count):
            self._at += 1_000_000 // FRAMES_PER_S
            captured_at = encode_long(self._at)
            yield from ((call.call_id, call.frame(captured_at)) for call in self.calls)


def expected_of(frames: Frames) -> Written:
    """The signals that every rival has to write, by the pure step."""
    of_calls: dict[str, list[AudioFrame]] = defaultdict(list)
    for call_id, value in (*frames.opening(), *frames.main(), *frames.closing()):
        of_calls[call_id].append(decode_as(AudioFrame, value))
    return {
        call_id: [encode(made) for made in signals.step(None, of_call).signals] for call_id, of_call in of_calls.items()
    }


@dataclass(frozen=True, slots=True)
class Result:
    """What a rival needed to drain the topic. `equal`: its signals were the expected ones."""

    frames: int
    cpu_s: float
    took_s: float
    memory_bytes: int
    equal: bool
    snapshots: int

    @property
    def frames_per_cpu_s(self) -> float:
        """The figure of merit."""
        return self.frames / self.cpu_s


async def measure(kafka: Broker, rival: Rival, number: int, frames: Frames, expected: Written) -> Result:
    """One run, the `number`th on this broker. Raises RuntimeError if the rival does not start or finish."""
    connection = kafka.connection
    app_id = f"bench-rival-{number}"
    await _fresh_topics(connection, app_id)
    written: Written = defaultdict(list)
    output: deque[str] = deque(maxlen=OUTPUT_LINES)

    def on_signal(record: Any, _: float) -> None:
        written[record.key.decode()].append(record.value)

    with tempfile.TemporaryDirectory(prefix="dispatchai-bench-rival-") as folder:
        variables = {
            job.APP_ID: app_id,
            job.BOOTSTRAP: connection.bootstrap_servers,
            job.EMBEDDED: "1" if connection.embedded else "",
            job.QUIX_STATE: rival.quix_state,
            "PYTHONPATH": str(ROOT),
            "PYTHONWARNINGS": "ignore",
        }
        started = Child(
            [rival.python, "-m", rival.module],
            env=environment(Path(folder), variables, connection),
            on_line=output.append,
        )
        async with started as process, follow(connection, Topic.SIGNALS, on_signal) as progress:

            async def drained(name: str, timeout_s: float) -> None:
                marks = {call_id for call_id, _ in frames.marks(name)}
                waiting = progress.until(lambda: written.keys() >= marks, timeout_s)
                await _wait(waiting, rival, process, output)

            await _fill(connection, frames.opening(), frames.marks("opened"))
            await drained("opened", START_S)
            os.kill(process.pid, signal.SIGSTOP)
            try:
                await _fill(connection, frames.main(), frames.marks("drained"))
                before, began = used_by(process.pid), time.monotonic()
            finally:
                os.kill(process.pid, signal.SIGCONT)
            await drained("drained", PATIENCE_S)
            after, took_s = used_by(process.pid), time.monotonic() - began
            await _fill(connection, frames.closing(), frames.marks("closed"))
            await drained("closed", PATIENCE_S)
    equal = {call_id: written[call_id] for call_id in expected} == expected
    snapshots = await _snapshots(connection, app_id)
    return Result(frames.count, after.cpu_s - before.cpu_s, took_s, after.memory_bytes, equal, snapshots)


async def _wait(waiting: Coroutine[Any, Any, None], rival: Rival, process: Child, output: Iterable[str]) -> None:
    """Wait for the signals of the rival. Raises RuntimeError if it ends before, or takes too long."""
    tasks = [asyncio.create_task(waiting), asyncio.create_task(process.wait())]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    arrived = tasks[0].done() and tasks[0].exception() is None
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    if not arrived:
        raise RuntimeError("\n".join([f"{rival.title}: its signals did not all come", *output]))


async def _fill(connection: KafkaConnection, *parts: Records) -> None:
    """Write the records to the topic, and return when the broker has them."""
    places: dict[str, tuple[int, bytes]] = {}
    now_ms = int(time.time() * 1000)
    async with PartitionQueues(connection, Topic.AUDIO_FRAMES) as queues:
        for count, (call_id, value) in enumerate(chain(*parts)):
            if call_id not in places:
                key = call_id.encode()
                places[call_id] = (queues.partition(key), key)
            partition, key = places[call_id]
            queues.append(partition, key, value, now_ms)
            if count % 1000 == 0:
                await asyncio.sleep(0)


async def _fresh_topics(connection: KafkaConnection, app_id: str) -> None:
    """Make empty topics of frames and signals, and a changelog for `app_id`."""
    topics = Topics.load()
    configs = topics.tables["signals"].changelog.configs
    async with _admin(connection) as admin:
        old = {Topic.AUDIO_FRAMES, Topic.SIGNALS}
        await admin.delete_topics(list(old & set(await admin.list_topics())))
        # The broker answers before they are deleted, and does not report when they are.
        async for _ in rounds(POLL_S):
            if not old & set(await admin.list_topics()):
                break
        new = NewTopic(job.changelog(app_id), topics.partitions, 1, topic_configs=configs)
        await admin.create_topics([new])
    await apply(connection, topics, replication=1)


@asynccontextmanager
async def _admin(connection: KafkaConnection) -> AsyncIterator[Any]:
    admin = AIOKafkaAdminClient(**connection.client_options())
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


async def _snapshots(connection: KafkaConnection, app_id: str) -> int:
    """The number of records in the changelog of `app_id`, by the ends of its partitions."""
    async with _admin(connection) as admin:
        names = [name for name in await admin.list_topics() if app_id in name]
        described = await admin.describe_topics(names)
    partitions = [
        aiokafka.TopicPartition(topic["topic"], partition["partition"])
        for topic in described
        for partition in topic["partitions"]
    ]
    async with aiokafka.AIOKafkaConsumer(**connection.client_options()) as consumer:
        return sum((await consumer.end_offsets(partitions)).values())


def prepare_quix() -> None:
    """Make the environment of the rival on Quix Streams if it is missing. Takes a minute, once."""
    if _QUIX_PYTHON.exists():
        return
    print(f"installing Quix Streams into {_QUIX_ENVIRONMENT}", file=sys.stderr)
    venv.create(_QUIX_ENVIRONMENT, with_pip=True)
    # The same numpy and codec as for the others: the comparison is not about these.
    same = [f"{name}=={version(name)}" for name in ("numpy", "fastavro")]
    install = [str(_QUIX_PYTHON), "-m", "pip", "install", "-q", "-r", str(_QUIX_REQUIREMENTS), *same]
    subprocess.run(install, check=True)  # noqa: S603 - nothing in it comes from outside


def text(results: Mapping[str, Sequence[Result]], kafka: Broker, frames: Frames) -> str:
    """The section of the page."""
    rows = []
    for name, runs in results.items():
        against = [ours.frames_per_cpu_s / run.frames_per_cpu_s for ours, run in zip(results[OURS], runs, strict=True)]
        rows.append(
            [
                RIVALS[name].title,
                f"{statistics.median(run.frames_per_cpu_s for run in runs):,.0f}",
                f"{statistics.median(run.cpu_s / run.frames * 1e6 for run in runs):.1f}",
                f"{statistics.median(against):.2f} ({min(against):.2f}-{max(against):.2f})",
                f"{statistics.median(run.frames / run.took_s for run in runs):,.0f}",
                f"{statistics.median(run.snapshots for run in runs):,.0f}",
                f"{max(run.memory_bytes for run in runs) / 1e6:.0f}",
                "yes" if all(run.equal for run in runs) else "NO",
            ]
        )
    header = [
        *("", "frames per second of CPU", "µs a frame", "this project against it", "frames/s"),
        *("snapshots", "MB", "same signals"),
    ]
    return "\n".join(
        [
            "## Side by side with others",
            "",
            "`python -m bench.rivals --apache`: the same recorded frames and the same job: decode Avro, loudness, "
            "voice activity, moving average, a state for each call, signals out, a snapshot of it with each signal. "
            f"{len(frames.calls):,} live calls, {frames.frames_each / FRAMES_PER_S:g} s of each, {frames.count:,} "
            f"frames, are in the topic before a rival goes on; counted is its processor time, threads included, until "
            f"it has drained it. "
            f"Medians of {len(results[OURS])} interleaved runs; ratios are within a run, with their range. "
            f"{kafka.name} on the same machine ({machine()}).",
            "",
            table(header, rows),
        ]
    )


def _frames(arguments: argparse.Namespace, began_at: int) -> Frames:
    # The recorded times are the same in every run, hence the signals too.
    return Frames(arguments.calls, round(arguments.seconds * FRAMES_PER_S), began_at)


async def _measure(arguments: argparse.Namespace) -> str:
    names = [name for name in RIVALS if name == OURS or name in arguments.rivals]
    if any(name.startswith("quix") for name in names):
        prepare_quix()
    began_at = int(time.time() * 1_000_000)
    expected = expected_of(frames := _frames(arguments, began_at))
    results: dict[str, list[Result]] = {name: [] for name in names}
    number = 0
    async with broker(apache=arguments.apache) as kafka:
        for repetition in range(arguments.repetitions):
            # Every other time in the opposite order: the machine differs between the first rival and the last.
            for name in names if repetition % 2 == 0 else reversed(names):
                number += 1
                result = await measure(kafka, RIVALS[name], number, _frames(arguments, began_at), expected)
                results[name].append(result)
                print(f"{name}: {result}", file=sys.stderr, flush=True)
    return text(results, kafka, frames)


def main() -> None:
    """Command line."""
    parser = command.parser("bench.rivals", __doc__)
    parser.add_argument("--calls", type=int, default=1000, help="calls side by side (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=6.0, help="audio of each call (default %(default)s)")
    parser.add_argument("--repetitions", type=int, default=3, help="runs of each (default %(default)s)")
    parser.add_argument(
        "--rivals", nargs="+", choices=[*RIVALS], default=[*RIVALS], help="beside this project; all by default"
    )
    command.run("bench.rivals", parser.parse_args(), _measure)


if __name__ == "__main__":
    main()
