"""The event-loop watchdog: ends a process whose event loop is blocked. Decides when a loop counts as blocked."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Final

import structlog

log = structlog.get_logger(__name__)

HEARTBEAT_S: Final = 1.0
"""How often the loop is asked for a heartbeat."""

HEARTBEATS_IN_LIMIT: Final = 6
"""With a shorter limit the loop is asked more often: at least this many times within it."""

EXIT_BLOCKED: Final = 1
"""Exit code of a process whose loop is blocked: that of every failure that a restart may cure."""

_LOGGED_FRAMES: Final = 5
"""Innermost stack frames of a blocked loop that are logged."""


class Watchdog:
    """A thread that asks the event loop for heartbeats, and ends the process if none comes for `limit_s` seconds.

    Code inside a blocked loop cannot report it, and Kafka's heartbeats come from the consumer's thread: without the
    watchdog the process would keep its partitions for ever.
    """

    def __init__(
        self,
        observe_delay_s: Callable[[float], None],
        limit_s: float,
        *,
        on_blocked: Callable[[Sequence[str]], None] | None = None,
    ) -> None:
        """`observe_delay_s` is called in the loop with the delay of each heartbeat, in seconds.

        `on_blocked` is called in the thread with ``file:line`` of the loop's innermost frames. The default logs them
        and ends the process.
        """
        self._observe_delay_s = observe_delay_s
        self._limit_s = limit_s
        self._interval_s = min(HEARTBEAT_S, limit_s / HEARTBEATS_IN_LIMIT)
        self._on_blocked = on_blocked or _end_process
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._answered = True

    def start(self) -> None:
        """Begin to watch the running loop, which runs in the calling thread."""
        loop, ident = asyncio.get_running_loop(), threading.get_ident()
        self._thread = threading.Thread(target=self._watch, args=(loop, ident), name="watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop watching."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self, loop: asyncio.AbstractEventLoop, ident: int) -> None:
        silent_s = 0.0
        # Counts the intervals it waited, not the clock: a frozen process does not wait.
        while not self._stop.wait(self._interval_s):
            if self._answered:
                silent_s = 0.0
                self._answered = False
                loop.call_soon_threadsafe(self._beat, time.monotonic())
            else:
                silent_s += self._interval_s
                if silent_s >= self._limit_s:
                    stack = traceback.extract_stack(sys._current_frames()[ident])
                    self._on_blocked([f"{frame.filename}:{frame.lineno}" for frame in stack[-_LOGGED_FRAMES:]])
                    return

    def _beat(self, asked_at_s: float) -> None:
        self._observe_delay_s(time.monotonic() - asked_at_s)
        self._answered = True


def _end_process(places: Sequence[str]) -> None:
    log.error("event_loop_blocked", places=list(places))
    os._exit(EXIT_BLOCKED)
