"""A process whose event loop is blocked ends; one whose loop runs goes on, and reports how late its turns are."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Sequence

from prometheus_client import CollectorRegistry

from dispatchai.process.child import Child
from dispatchai.process.metrics import DELAY_BUCKETS_S, Histogram
from dispatchai.process.watchdog import Watchdog
from tests.engine.test_app import until

BLOCKED = """
import asyncio, time
from dispatchai.process.metrics import ProcessMetrics
from dispatchai.process.watchdog import Watchdog

async def main():
    Watchdog(ProcessMetrics().loop_delay.observe, 0.6).start()
    time.sleep(600)

asyncio.run(main())
"""


def make_delay(registry: CollectorRegistry) -> Histogram:
    return Histogram("delay", "Delay.", buckets=DELAY_BUCKETS_S, registry=registry)


async def test_a_loop_that_runs_is_left_alone_and_its_delay_measured() -> None:
    registry = CollectorRegistry()
    blocked: list[Sequence[str]] = []
    watchdog = Watchdog(make_delay(registry).observe, 0.3, on_blocked=blocked.append)
    watchdog.start()
    try:
        await until(lambda: (registry.get_sample_value("delay_count") or 0) > 10)
    finally:
        watchdog.stop()
    assert blocked == []


async def test_a_blocked_loop_is_found_with_the_place_where_it_is_blocked() -> None:
    found = threading.Event()
    places: list[str] = []

    def on_blocked(where: Sequence[str]) -> None:
        places.extend(where)
        found.set()

    watchdog = Watchdog(make_delay(CollectorRegistry()).observe, 0.3, on_blocked=on_blocked)
    watchdog.start()
    try:
        assert found.wait(60)
    finally:
        watchdog.stop()
    assert any(place.startswith(__file__) for place in places)


async def test_a_process_with_a_blocked_loop_ends_with_one_and_says_where() -> None:
    said: list[str] = []
    async with asyncio.timeout(60), Child([sys.executable, "-c", BLOCKED], on_line=said.append) as child:
        assert await child.wait() == 1
    (line,) = [line for line in said if "event_loop_blocked" in line]
    assert "<string>:8" in line
