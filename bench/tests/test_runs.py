"""The measurements run: a few live calls at the real processes on the embedded broker, every frame accounted for."""

import time

import pytest

from bench import signals
from bench.rivals import __main__ as rivals
from tests.support.kafka.measured import broker


async def test_every_frame_of_live_calls_is_counted_once_and_its_signal_timed() -> None:
    async with broker(apache=False) as kafka:
        measured = await signals.measure(kafka, live=10, seconds=2.0)
    assert not measured.problems
    assert measured.made_s
    assert min(measured.made_s) > 0
    assert measured.worker_cores > 0
    assert measured.worker_memory_bytes > 10_000_000


@pytest.mark.parametrize("name", ["ours", "bare", "faust", "guide"])
async def test_every_rival_writes_the_same_signals(name: str) -> None:
    began_at = int(time.time() * 1_000_000)
    expected = rivals.expected_of(rivals.Frames(20, 60, began_at))
    async with broker(apache=False) as kafka:
        result = await rivals.measure(kafka, rivals.RIVALS[name], 1, rivals.Frames(20, 60, began_at), expected)
    assert result.equal
    assert result.frames == 20 * 60
    assert result.cpu_s > 0
