"""What a call costs on Kafka's disk: `python -m bench.disk --apache [--write]`.

Makes calls through the whole system, then reads Kafka's log folder: the bytes of each topic that is kept for a time, as
they are, and as they would be with each compression. A broker compresses each producer's batch by itself, so the size
depends on how many calls share a batch; here it is computed from the same batches.
"""

from __future__ import annotations

import argparse
import asyncio
import struct
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Final

import numpy as np
from aiokafka import codec

from bench import calls, command
from dispatchai.audio.g711 import decode, encode_mulaw
from dispatchai.kafka.topics import Policy, Topic, Topics
from dispatchai.simulator import CallerAudio
from tests.support.recorded_run import Packets
from tests.support.report import machine, table

HEADER: Final = struct.Struct(">qiibIh")
"""Base offset, length, leader's epoch, magic, checksum and attributes of a batch. The length counts what follows it."""

BATCH_BYTES: Final = 61
"""The header of a batch, which is never compressed."""

LENGTH_FROM: Final = 12
COMPRESSION: Final = 0b111

COMPRESS: Final[dict[str, Callable[[bytes], bytes]]] = {
    "none": lambda records: records,
    "gzip": codec.gzip_encode,
    "snappy": codec.snappy_encode,
    "lz4": codec.lz4_encode,
    "zstd": codec.zstd_encode,
}

FRAME_BYTES: Final = 160
NOISE_RMS: Final = 33.0
"""-60 dBFS, the noise of a quiet line, in units of a 16-bit sample."""

MULAW_BYTES_A_MINUTE: Final = 480_000
HOURS_A_DAY: Final = 24


def distinct_audio(count: int, seconds: float, noise_rms: float) -> list[CallerAudio]:
    """The shipped callers for `count` calls. Each begins at another place of its recording, so that no two calls send
    the same frames at the same time, and has noise of its own: what the shipped voices have between words is digital
    silence, which no line has."""
    random = np.random.default_rng(1)
    audios = []
    for number, audio in zip(range(count), cycle(calls.caller_audio(seconds)), strict=False):
        samples = np.roll(decode("PCMU", audio.pcmu), FRAME_BYTES * int(random.integers(audio.frames)))
        noisy = np.clip(samples + random.normal(0, noise_rms, len(samples)), -32_768, 32_767)
        audios.append(CallerAudio(f"{number}", encode_mulaw(noisy.astype(np.int16))))
    return audios


def batches(log: bytes) -> Iterator[bytes]:
    """The records of each batch in a segment. Raises ValueError if they are compressed."""
    at = 0
    while at + BATCH_BYTES <= len(log):
        _, length, _, _, _, attributes = HEADER.unpack_from(log, at)
        if length == 0:
            return
        if attributes & COMPRESSION:
            raise ValueError("the records are compressed already: unset KAFKA_COMPRESSION")
        yield log[at + BATCH_BYTES : at + LENGTH_FROM + length]
        at += LENGTH_FROM + length


def sizes(log_dir: Path, topic: str) -> Counter[str]:
    """The bytes of `topic` with each compression."""
    found = Counter[str]()
    for file in log_dir.glob(f"{topic}-[0-9]*/*.log"):
        for records in batches(file.read_bytes()):
            for name, compress in COMPRESS.items():
                found[name] += BATCH_BYTES + len(compress(records))
            found["batches"] += 1
    return found


async def _measure(arguments: argparse.Namespace) -> str:
    kept = {name: spec.retention_ms for name, spec in Topics.load().topics.items() if spec.policy is Policy.DELETE}
    options = calls.Options(arguments.calls, arguments.seconds, speed=1.0, seed=1, kafka=None, apache=True)
    with tempfile.TemporaryDirectory(prefix="dispatchai-bench-disk-") as folder:
        async with calls.system(options, Path(folder)) as (run, connection, _):
            audios = distinct_audio(options.calls, options.seconds, arguments.noise_rms)
            reports = await calls.make_calls(run, options, calls.Measured(options), audios)
            async with Packets(connection) as packets:
                await packets.wait_for([report.leg.call_session_id for report in reports], calls.PACKETS_S)
            found = {topic: await asyncio.to_thread(sizes, Path(folder) / "log", topic) for topic in kept}
    minutes = options.calls * options.seconds / 60
    rows = []
    for topic, of_topic in found.items():
        if of_topic:
            in_kb = [f"{of_topic[one] / minutes / 1e3:,.1f}" for one in COMPRESS]
            rows.append([f"`{topic}`", f"{of_topic['batches'] / minutes:,.0f}", *in_kb])
    month = {one: sum(found[topic][one] for topic in kept if topic != Topic.PACKETS) / minutes for one in COMPRESS}
    rows += [
        ["together", "", *(f"{month[one] / 1e3:,.0f}" for one in COMPRESS)],
        ["against bare µ-law", "", *(f"{month[one] / MULAW_BYTES_A_MINUTE:.2f}" for one in COMPRESS)],
        ["GB a day for each call in progress", "", *(f"{month[one] * 60 * HOURS_A_DAY / 1e9:.2f}" for one in COMPRESS)],
    ]
    about = (
        f"`python -m bench.disk --apache --calls {options.calls} --seconds {options.seconds:g}`: {options.calls} calls "
        f"at once, each of {options.seconds:g} s, through the whole system with the scripted recogniser, from lines "
        f"with noise of -60 dBFS; kB for each minute of a call in Kafka's log, one replica. The fewer calls share a "
        f"batch, the more a call costs. The sizes with a compression are those of the same batches "
        f"compressed, as a broker does it with the topic's `compression.type` or a client with its own. `together` is "
        f"without `packets`, which is kept for longer. {machine()}."
    )
    header = ["topic", "batches", *COMPRESS]
    return "\n".join(["## What a call costs on disk", "", about, "", table(header, rows)])


def main() -> None:
    """Command line."""
    parser = command.parser("bench.disk", __doc__)
    parser.add_argument("--calls", type=int, default=20, help="calls at once (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=60.0, help="length of each call (default %(default)s)")
    parser.add_argument("--noise-rms", type=float, default=NOISE_RMS, help="noise of the line (default %(default)s)")
    command.run("bench.disk", parser.parse_args(), _measure)


if __name__ == "__main__":
    main()
