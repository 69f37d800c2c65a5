"""Live calls at the worker, one record for each frame of 20 ms: `python -m bench.signals --apache [--write]`.

The load comes from a process of its own; the worker is a real process, with the signals agent alone or (`--whole`) as
`dispatchai worker` runs it. Two times are measured. For every frame, how long it was in Kafka before its call's state
was updated: Apache Kafka stamps the frames on arrival here, and the worker of the signals agent notes when it is done
with them. And from the capture of a frame to the record of the signal that it caused, which is made in the step that
updates the state: a sample of one in forty frames. At the end every frame is accounted for.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from array import array
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from aiohttp import web
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import GroupCoordinatorNotAvailableError

from bench import command
from bench.frames import Call
from bench.load import Plan, Sent, load
from bench.partition_queues import PartitionQueues
from bench.worker import UPDATED
from dispatchai.app import WORKER as WORKER_GROUP
from dispatchai.kafka.embedded_broker import free_port
from dispatchai.kafka.topics import Topic, Topics
from dispatchai.process.child import Child
from dispatchai.records.avro_primitives import encode_long
from dispatchai.records.codec import decode_fields
from tests.support.follow import Progress, follow
from tests.support.kafka.measured import Broker, broker
from tests.support.processes import cores, environment, rounds, used_by_each
from tests.support.report import machine, milliseconds, quantile, table

RAMP_CALLS_PER_S: Final = 400.0
"""How fast the first calls arrive."""

RAMP_LEAST_S: Final = 2.0

START_S: Final = 120.0
"""How long a worker may take to start and get its partitions."""

PATIENCE_S: Final = 120.0
"""How long the last signals may take after the load has ended: a worker that is behind catches up."""

PROBES: Final = 60
"""Short calls that show that every partition is processed: with this many, each of eight gets one almost certainly."""

POLL_S: Final = 0.2

PARTS: Final = (0.5, 0.95, 0.99)

FRAME_MS: Final = 20

WORKER: Final = "worker"
LOAD: Final = "load generator"
BROKER: Final = "broker"


@dataclass(slots=True)
class Seen:
    """What was read from the topic `signals`. Times in seconds since the epoch."""

    captured: array[float] = field(default_factory=lambda: array("d"))
    made: array[float] = field(default_factory=lambda: array("d"))
    """When the worker made the record."""
    received: array[float] = field(default_factory=lambda: array("d"))
    """When a consumer received it."""
    ended: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Frames and missing frames of each call that has ended."""

    def add(self, record: Any, received_at: float) -> None:
        """The next record."""
        _, signal = decode_fields(record.value)
        if signal["kind"] == "END":
            figures = (signal["audio_ms"] // FRAME_MS, signal["missing_frames"])
            self.ended[record.key.decode()] = figures
        else:
            self.captured.append(signal["captured_at"] / 1_000_000)
            self.made.append(record.timestamp / 1000)
            self.received.append(received_at)

    def delays_s(self, since: float, until: float) -> tuple[list[float], list[float]]:
        """For the frames captured between the two: seconds until the signal was made, and until it was received."""
        within = [index for index, at in enumerate(self.captured) if since <= at < until]
        return (
            [self.made[index] - self.captured[index] for index in within],
            [self.received[index] - self.captured[index] for index in within],
        )


@dataclass(frozen=True, slots=True)
class Measured:
    """What a run showed. `cores` is processor time per second, `memory_bytes` at the end, by process."""

    live: int
    workers: int
    frames_per_s: float
    updated_s: Sequence[float]
    """Frame in Kafka -> state updated, by `PARTS`. Empty if Kafka or the worker takes no times."""
    made_s: Sequence[float]
    received_s: Sequence[float]
    cores: Mapping[str, float]
    memory_bytes: Mapping[str, int]
    sent: Sent
    problems: Sequence[str]

    @property
    def worker_cores(self) -> float:
        """Of all workers together."""
        return sum(cores for name, cores in self.cores.items() if name.startswith(WORKER))

    @property
    def worker_memory_bytes(self) -> int:
        """Of all workers together."""
        return sum(size for name, size in self.memory_bytes.items() if name.startswith(WORKER))

    @property
    def is_limited_by_load(self) -> bool:
        """Whether the load generator, and not the worker, was the limit: more than 1 % of its frames were late."""
        return self.sent.late_frames > self.sent.frames / 100


@asynccontextmanager
async def simulated_carrier() -> AsyncIterator[int]:
    """The port of a carrier that accepts every command and sends no events: the load writes those of the calls."""

    async def done(_: web.Request) -> web.Response:
        return web.json_response({"data": {"result": "ok"}})

    application = web.Application()
    application.router.add_post("/{path:.*}", done)
    runner = web.AppRunner(application)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield port
    finally:
        await runner.cleanup()


async def stamp_frames(kafka: Broker) -> None:
    """Let Kafka stamp each frame with the time of its arrival; the embedded broker cannot."""
    admin = AIOKafkaAdminClient(**kafka.connection.client_options())
    await admin.start()
    try:
        stamped = {**Topics.load().topics[Topic.AUDIO_FRAMES].configs, "message.timestamp.type": "LogAppendTime"}
        for response in await admin.alter_configs(
            [ConfigResource(ConfigResourceType.TOPIC, Topic.AUDIO_FRAMES, stamped)]
        ):
            for code, message, *_ in response.resources:
                if code:
                    raise RuntimeError(f"{Topic.AUDIO_FRAMES}: its configuration cannot be changed: {message}")
    finally:
        await admin.close()


def updated_s(folder: Path, since: float, until: float) -> list[float]:
    """The quantiles `PARTS` of the time from a frame in Kafka to the updated state, from the files that workers left in
    `folder`, for states updated between the two times."""
    kept = [np.load(path) for path in folder.glob("*.npy")]
    updated, stamped_ms, frames = np.concatenate([np.empty((3, 0)), *kept], axis=1)
    within = (since <= updated) & (updated < until)
    delays = np.repeat(updated - stamped_ms / 1000, np.where(within, frames, 0).astype(np.int64))
    quantiles: npt.NDArray[np.float64] = np.quantile(delays, PARTS, method="inverted_cdf")
    return quantiles.tolist()


@asynccontextmanager
async def workers(kafka: Broker, count: int, *, whole: bool, folder: Path) -> AsyncIterator[list[Child]]:
    """Start `count` workers; not all have joined their group yet."""
    async with AsyncExitStack() as running:
        variables = {"GREETING": ""}
        if whole:
            # Without an API key the worker expects a simulated carrier, on this port.
            variables["SIMULATED_CARRIER_PORT"] = str(await running.enter_async_context(simulated_carrier()))
        argv = ["dispatchai", "worker"] if whole else ["bench.worker"]
        children = []
        for number in range(count):
            variables[UPDATED] = str(folder / f"{number}.npy")
            settings = environment(folder / str(number), variables, kafka.connection)
            children.append(await running.enter_async_context(Child([sys.executable, "-m", *argv], env=settings)))
        yield children


async def joined(kafka: Broker, count: int) -> None:
    """Return when `count` workers share the partitions. Raises TimeoutError."""
    admin = AIOKafkaAdminClient(**kafka.connection.client_options())
    await admin.start()
    try:
        async with asyncio.timeout(START_S):
            async for _ in rounds(POLL_S):
                try:
                    (response,) = await admin.describe_consumer_groups([WORKER_GROUP])
                except GroupCoordinatorNotAvailableError:  # a new broker creates the topic of groups first
                    continue
                (group,) = response.to_object()["groups"]
                if group["state"] == "Stable" and len(group["members"]) == count:
                    return
    finally:
        await admin.close()


async def probe(kafka: Broker, seen: Seen, progress: Progress) -> None:
    """Return when calls of every partition are processed. Raises TimeoutError."""
    calls = [Call(f"probe-{time.time_ns()}-{number}", number) for number in range(PROBES)]
    now = time.time()
    async with PartitionQueues(kafka.connection, Topic.AUDIO_FRAMES) as queues:
        for call in calls:
            key = call.call_id.encode()
            partition, at, at_ms = queues.partition(key), int(now * 1_000_000), int(now * 1000)
            for value in (call.start(at), call.frame(encode_long(at)), call.end(at)):
                queues.append(partition, key, value, at_ms)
    wanted = {call.call_id for call in calls}
    await progress.until(lambda: seen.ended.keys() >= wanted, START_S)
    for call_id in wanted:
        del seen.ended[call_id]


async def probe_worker(kafka: Broker) -> None:
    """Return when the worker processes calls of every partition. Raises TimeoutError."""
    seen = Seen()
    async with follow(kafka.connection, Topic.SIGNALS, seen.add) as progress:
        await probe(kafka, seen, progress)


async def measure(kafka: Broker, live: int, seconds: float, *, whole: bool = False, count: int = 1) -> Measured:
    """One run: `live` calls for `seconds` at `count` workers. Raises TimeoutError if a worker does not start."""
    with tempfile.TemporaryDirectory(prefix="dispatchai-bench-signals-") as name:
        return await _measure_in(Path(name), kafka, live, seconds, whole=whole, count=count)


async def _measure_in(folder: Path, kafka: Broker, live: int, seconds: float, *, whole: bool, count: int) -> Measured:
    seen = Seen()
    plan = Plan(live, max(RAMP_LEAST_S, live / RAMP_CALLS_PER_S), kafka.settle_s + seconds, events=whole)
    stamped = kafka.log_dir is not None and not whole
    async with AsyncExitStack() as running:
        if stamped:
            await stamp_frames(kafka)
        progress = await running.enter_async_context(follow(kafka.connection, Topic.SIGNALS, seen.add))
        children = await running.enter_async_context(workers(kafka, count, whole=whole, folder=folder))
        if count > 1:
            await joined(kafka, count)
        await probe(kafka, seen, progress)
        sending = await running.enter_async_context(load(plan, environment(folder, {}, kafka.connection)))
        pids = {f"{WORKER} {number}": child.pid for number, child in enumerate(children, start=1)}
        pids |= {LOAD: sending.pid, BROKER: kafka.pid}
        await asyncio.sleep(await sending.began_at() + plan.ramp_s + kafka.settle_s - time.time())
        before, since = used_by_each(pids), time.time()
        await asyncio.sleep(seconds)
        after, until = used_by_each(pids), time.time()
        sent = await sending.sent()
        problems = []
        try:
            await progress.until(lambda: len(seen.ended) >= sent.calls, PATIENCE_S)
        except TimeoutError:
            problems.append(f"{sent.calls - len(seen.ended)} of {sent.calls} calls did not end")
    frames, missing = (sum(figures) for figures in zip(*seen.ended.values(), strict=True))
    if (frames, missing) != (sent.frames, 0):
        problems.append(f"{sent.frames} frames were sent; {frames} counted, {missing} missed")
    made_s, received_s = seen.delays_s(since, until)
    return Measured(
        live=live,
        workers=count,
        frames_per_s=sent.frames / sent.seconds,
        updated_s=updated_s(folder, since, until) if stamped else (),
        made_s=made_s,
        received_s=received_s,
        cores=cores(before, after, until - since),
        memory_bytes={name: used.memory_bytes for name, used in after.items()},
        sent=sent,
        problems=problems,
    )


def row(measured: Measured) -> list[str]:
    """A line of the table."""
    return [
        f"{measured.live:,}",
        f"{measured.frames_per_s:,.0f}",
        milliseconds(measured.updated_s) or "n/a",
        milliseconds(quantile(measured.made_s, part) for part in PARTS),
        f"{quantile(measured.received_s, 0.99) * 1000:.0f}",
        f"{measured.worker_cores:.2f}",
        f"{measured.worker_memory_bytes / 1e6:.0f}",
        f"{measured.cores[BROKER]:.2f}",
        f"{measured.cores[LOAD]:.2f}",
        "load generator" if measured.is_limited_by_load else f"{measured.sent.latest_s * 1000:.0f} ms",
        "; ".join(measured.problems) or "each once",
    ]


HEADER: Final = (
    *("live calls", "frames/s", "frame in Kafka → state updated, p50 / p95 / p99 ms"),
    *("capture → signal made, p50 / p95 / p99 ms", "received, p99 ms", "worker, cores", "worker, MB"),
    *("broker, cores", "load, cores", "load at most late", "frames"),
)


async def _measure(arguments: argparse.Namespace) -> str:
    runs = []
    for live in arguments.live:
        async with broker(apache=arguments.apache) as kafka:
            measured = await measure(kafka, live, arguments.seconds, whole=arguments.whole)
        runs.append(row(measured))
        print(" · ".join(runs[-1]), file=sys.stderr, flush=True)
    return text(runs, arguments, kafka)


def text(runs: Sequence[Sequence[str]], arguments: argparse.Namespace, kafka: Broker) -> str:
    """The section of the page."""
    options = f"{' --apache' if arguments.apache else ''}{' --whole' if arguments.whole else ''}"
    where = "worker (calls, signals, triage, ranking)" if arguments.whole else "signals agent"
    about = (
        f"`python -m bench.signals{options}`: simulated live calls for {arguments.seconds:g} s after a ramp and "
        f"{kafka.settle_s:g} s in which the broker gets warm, coming and ending as fitted to real calls for service "
        f"(`bench/arrivals.json`), one record for each frame, at one process of the {where}. The second time runs "
        f"from a frame's capture, so it holds the producer's linger of 5 ms, to the record of the signal that the "
        f"frame caused; `received` adds the way to a consumer. Broker and load generator run on the same machine "
        f"({machine()})."
    )
    title = f"## Live calls at the {'whole worker' if arguments.whole else 'signals agent'}, {kafka.name}"
    return "\n".join([title, "", about, "", table(HEADER, runs)])


def main() -> None:
    """Command line."""
    parser = command.parser("bench.signals", __doc__)
    parser.add_argument(
        "--live", type=int, nargs="+", default=[1, 100, 300, 1000, 2000, 4000], help="numbers of live calls to try"
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="how long each is measured (default %(default)s)")
    parser.add_argument("--whole", action="store_true", help="the whole worker, with the calls' events")
    arguments = parser.parse_args()
    section = f"bench.signals{'.whole' if arguments.whole else ''}{'.apache' if arguments.apache else ''}"
    command.run(section, arguments, _measure)


if __name__ == "__main__":
    main()
