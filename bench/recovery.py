"""A worker with live calls is killed and started again: `python -m bench.recovery --apache [--write]`.

Measures from the kill until the first signal of the new process, and until its signals are no longer late. Once with a
fresh changelog, and once with the changelog of an hour of such calls: as many snapshots, with the times of an hour, so
that the broker cuts and compacts the segments as it would in an hour, but written at once.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

import aiokafka

from bench import command
from bench.arrivals import Arrivals
from bench.load import Plan, load
from bench.partition_queues import PartitionQueues
from bench.signals import RAMP_CALLS_PER_S, Seen, probe, workers
from dispatchai.app import WORKER
from dispatchai.kafka.topics import Topic
from dispatchai.records import SignalState, StreamSignal, encode
from tests.support.follow import follow
from tests.support.kafka.measured import Broker, broker
from tests.support.processes import environment, rounds
from tests.support.report import machine, table

CHANGELOG: Final = f"{WORKER}-signals-changelog"

BEFORE_S: Final = 15.0
"""How long the calls are live before the kill."""

AFTER_S: Final = 60.0
"""How long they are live after it: three times what catching up may take."""

LATE_S: Final = 0.5
"""A signal that is made this long after its frame was captured is late. Live signals take a tenth of it."""

PATIENCE_S: Final = 120.0

EXPIRY_S: Final = 600.0
"""Longer than a run: no state may expire before its last frames are read, even while the worker is behind."""

CLEANED_S: Final = 45.0
"""A changelog that has not become shorter for this long is compacted: the broker checks every 15 s."""

POLL_S: Final = 1.0

FETCH_MS: Final = 1000


@dataclass(frozen=True, slots=True)
class Measured:
    """What a kill cost, in seconds from it. `changelog` is about how many records the new process had to read."""

    written: int
    changelog: int
    first_s: float
    caught_up_s: float
    problems: list[str]


def past(live: int, seconds: int, now: float) -> Iterator[tuple[int, str]]:
    """(millisecond, call id) of each snapshot of `live` calls, one a second for each, in the `seconds` until `now`."""
    arrivals, random = Arrivals.load(), Random(1)  # noqa: S311 - repeatable
    calls = [(f"past-{number}", arrivals.left_s(random)) for number in range(live)]
    made = live
    for second in range(seconds):
        at_ms = int((now - seconds + second) * 1000)
        for index, (call_id, left_s) in enumerate(calls):
            yield at_ms, call_id
            if left_s < 1:
                made += 1
                calls[index] = (f"past-{made}", arrivals.length_s(random))
            else:
                calls[index] = (call_id, left_s - 1)


def _snapshot(call_id: str) -> bytes:
    """A state as the agent writes it. Its content does not matter, because these calls do not go on."""
    stream = StreamSignal(f"stream-{call_id}", 6000, True, 0.1, 0.1, False, 0.1, int(time.time() * 1e6), 1, 1, False)
    return encode(SignalState((stream,), 120_000.0, 60_000.0, 3000, 100.0, 1.0, 0, 6000))


async def write_past(kafka: Broker, live: int, seconds: int) -> int:
    """Write the snapshots of the past to the changelog, and wait until it is compacted. Returns their number."""
    count = 0
    values: dict[str, tuple[int, bytes, bytes]] = {}
    async with PartitionQueues(kafka.connection, CHANGELOG) as queues:
        for at_ms, call_id in past(live, seconds, time.time() - CLEANED_S):
            if call_id not in values:
                key = call_id.encode()
                values[call_id] = (queues.partition(key), key, _snapshot(call_id))
            partition, key, value = values[call_id]
            queues.append(partition, key, value, at_ms)
            count += 1
            if count % live == 0:
                # The broker cuts its segments by these times only if batches follow them.
                await queues.flush() if count % (live * 30) == 0 else await asyncio.sleep(0)
    if kafka.log_dir is not None:
        await _compacted(kafka.log_dir)
    return count


async def _compacted(log_dir: Path) -> None:
    shortest, since = float("inf"), time.monotonic()
    async for _ in rounds(POLL_S):
        size = await asyncio.to_thread(_size, log_dir)
        if size < shortest:
            shortest, since = size, time.monotonic()
        if time.monotonic() - since > CLEANED_S:
            return


def _size(log_dir: Path) -> int:
    """The bytes of the changelog's segments."""
    return sum(file.stat().st_size for file in log_dir.glob(f"{CHANGELOG}-*/*.log"))


async def _length(kafka: Broker, topic: str) -> int:
    """The number of records in `topic` now. After a compaction it is less than the offsets say."""
    count = 0
    options = kafka.connection.client_options()
    consumer = aiokafka.AIOKafkaConsumer(topic, **options, auto_offset_reset="earliest", enable_auto_commit=False)
    async with consumer:
        ends = await consumer.end_offsets(consumer.assignment())
        left = {partition for partition, end in ends.items() if end > 0}
        while left:
            for records in (await consumer.getmany(*left, timeout_ms=FETCH_MS)).values():
                count += len(records)
            left = {partition for partition in left if await consumer.position(partition) < ends[partition]}
    return count


async def measure(kafka: Broker, live: int, past_s: int, *, whole: bool) -> Measured:
    """One kill. Raises TimeoutError if a worker does not start."""
    seen = Seen()
    written = await write_past(kafka, live, past_s) if past_s else 0
    plan = Plan(live, live / RAMP_CALLS_PER_S, BEFORE_S + AFTER_S, expiry_s=EXPIRY_S, events=whole)
    async with AsyncExitStack() as running:
        folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="dispatchai-bench-recovery-")))
        progress = await running.enter_async_context(follow(kafka.connection, Topic.SIGNALS, seen.add))
        (worker,) = await running.enter_async_context(workers(kafka, 1, whole=whole, folder=folder / "first"))
        await probe(kafka, seen, progress)
        sending = await running.enter_async_context(load(plan, environment(folder, {}, kafka.connection)))
        await asyncio.sleep(await sending.began_at() + plan.ramp_s + BEFORE_S - time.time())
        length = await _length(kafka, CHANGELOG)
        os.kill(worker.pid, signal.SIGKILL)
        killed_at = time.time()
        await worker.wait()
        await running.enter_async_context(workers(kafka, 1, whole=whole, folder=folder / "second"))
        sent = await sending.sent()
        problems = []
        try:
            await progress.until(lambda: len(seen.ended) >= sent.calls, PATIENCE_S)
        except TimeoutError:
            problems.append(f"{sent.calls - len(seen.ended)} of {sent.calls} calls did not end")
    frames, missing = (sum(figures) for figures in list(zip(*seen.ended.values(), strict=True))[:2])
    if (frames, missing) != (sent.frames, 0):
        problems.append(f"{sent.frames} frames were sent; {frames} counted, {missing} missed")
    return _measured(seen, killed_at, written, length, problems)


def _measured(seen: Seen, killed_at: float, written: int, length: int, problems: list[str]) -> Measured:
    signals = zip(seen.made, seen.captured, strict=True)
    after = [(made, made - captured) for made, captured in signals if made > killed_at]
    first_s = min((made for made, _ in after), default=float("nan")) - killed_at
    late = [made for made, delay_s in after if delay_s > LATE_S]
    caught_up_s = max(late, default=killed_at + first_s) - killed_at
    return Measured(written, length, first_s, caught_up_s, problems)


async def _measure(arguments: argparse.Namespace) -> str:
    rows: list[list[str]] = []
    for past_s in (0, round(arguments.past_minutes * 60)):
        if past_s == 0 and rows:
            break
        async with broker(apache=arguments.apache) as kafka:
            measured = await measure(kafka, arguments.live, past_s, whole=arguments.whole)
        rows.append(
            [
                f"{past_s / 60:g} minutes" if past_s else "fresh",
                f"{measured.written:,}",
                f"{measured.changelog:,}",
                f"{measured.first_s:.1f}",
                f"{measured.caught_up_s:.1f}",
                "; ".join(measured.problems) or "each once in effect",
            ]
        )
        print(" · ".join(rows[-1]), file=sys.stderr, flush=True)
    header = ["changelog", "snapshots before", "records to recover", "first signal, s", "caught up, s", "frames"]
    what = "the whole worker" if arguments.whole else "the signals agent's worker"
    about = (
        f"`python -m bench.recovery{' --apache' if arguments.apache else ''}{' --whole' if arguments.whole else ''}`: "
        f"{what} with {arguments.live:,} live calls is killed with SIGKILL and started again at once. Seconds from the "
        f"kill until the first signal of the new process, and until no signal is made more than {LATE_S:g} s after its "
        f"frame. The snapshots of the past were written at once with the times of {arguments.past_minutes:g} minutes, "
        f"and compacted by {kafka.name} before. Broker and load generator run on the same machine ({machine()})."
    )
    return "\n".join(["## Recovery of a killed worker", "", about, "", table(header, rows)])


def main() -> None:
    """Command line."""
    parser = command.parser("bench.recovery", __doc__)
    parser.add_argument("--live", type=int, default=1000, help="live calls (default %(default)s)")
    parser.add_argument(
        "--past-minutes", type=float, default=60.0, help="what the second changelog holds; 0 for none (default 60)"
    )
    parser.add_argument("--whole", action="store_true", help="the whole worker, with the calls' events")
    arguments = parser.parse_args()
    command.run(f"bench.recovery{'.whole' if arguments.whole else ''}", arguments, _measure)


if __name__ == "__main__":
    main()
