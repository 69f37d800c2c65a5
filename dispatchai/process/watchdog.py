"""Whether the event loop of a process still turns. Decides when it is blocked, and ends the process then."""

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

from dispatchai.engine.metrics import Histogram

log = structlog.get_logger(__name__)

PULSE_S: Final = 1.0
"""How often the loop is asked for a sign of life."""

ASKED_IN_LIMIT: Final = 6
"""With a shorter limit it is asked more often."""

EXIT_BLOCKED: Final = 1
"""Exit code of a process whose loop is blocked: that of every failure after which a new process may do."""

_KEPT_PLACES: Final = 5
"""Innermost lines of code of a blocked loop that are logged."""


class Pulse:
    """A thread that asks the event loop for a sign of life, and ends the process if none comes for `limit_s` seconds.

    Nothing that runs in a blocked loop could tell, and Kafka's heartbeats come from the consumer's thread: the process
    would keep its partitions for ever. How late each sign comes goes into `delay`.
    """

    def __init__(
        self, delay: Histogram, limit_s: float, *, on_blocked: Callable[[Sequence[str]], None] | None = None
    ) -> None:
        """`on_blocked` is called in the thread with the innermost places of the loop's code; it ends the process."""
        self._delay = delay
        self._limit_s = limit_s
        self._every_s = min(PULSE_S, limit_s / ASKED_IN_LIMIT)
        self._on_blocked = on_blocked or _end_process
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._answered = True

    def start(self) -> None:
        """Begin to ask the running loop, whose thread is this one."""
        loop, ident = asyncio.get_running_loop(), threading.get_ident()
        self._thread = threading.Thread(target=self._ask, args=(loop, ident), name="pulse", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ask no more."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _ask(self, loop: asyncio.AbstractEventLoop, ident: int) -> None:
        silent_s = 0.0
        # Waits are counted, not the clock: a frozen process does not wait.
        while not self._stop.wait(self._every_s):
            if self._answered:
                silent_s = 0.0
                self._answered = False
                loop.call_soon_threadsafe(self._answer, time.monotonic())
            else:
                silent_s += self._every_s
                if silent_s >= self._limit_s:
                    stack = traceback.extract_stack(sys._current_frames()[ident])
                    self._on_blocked([f"{frame.filename}:{frame.lineno}" for frame in stack[-_KEPT_PLACES:]])
                    return

    def _answer(self, asked_at_s: float) -> None:
        self._delay.observe(time.monotonic() - asked_at_s)
        self._answered = True


def _end_process(places: Sequence[str]) -> None:
    log.error("event_loop_blocked", places=list(places))
    os._exit(EXIT_BLOCKED)
