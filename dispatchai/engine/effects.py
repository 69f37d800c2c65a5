"""Effects of records outside Kafka: carried out in order for each key, beside the stream.

A slow service must not hold up the records of other keys, so each key's effects run in a task of their own. The key's
state is not snapshotted before its last effect is done. A crash therefore reads the record again and repeats the
effect, so an effect must be idempotent under its id.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar

import structlog

from dispatchai.engine.keyed_state import KeyedStates
from dispatchai.process.log_limit import LogLimits

log = structlog.get_logger(__name__)

E = TypeVar("E")


class Effects(Generic[E]):
    """The pending effects of the keys of `states`. `perform(key, effect)` carries one out."""

    def __init__(self, states: KeyedStates[Any], perform: Callable[[str, E], Awaitable[None]]) -> None:
        self._states = states
        self._perform = perform
        self._queues: dict[str, deque[E]] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._failed_log = LogLimits()

    def submit(self, key: str, effects: Sequence[E]) -> None:
        """Queue `effects` for `key`, after those that are pending already."""
        if not effects:
            return
        self._states.block(key)
        queue = self._queues.setdefault(key, deque())
        queue.extend(effects)
        if key not in self._tasks:
            self._tasks[key] = asyncio.get_running_loop().create_task(self._drain(key, queue))

    async def _drain(self, key: str, queue: deque[E]) -> None:
        while queue:
            effect = queue.popleft()
            try:
                await self._perform(key, effect)
            except Exception:
                # An effect that fails must block neither the key's other effects nor its state.
                if count := self._failed_log.add(type(effect).__name__):
                    log.exception("effect_failed", key=key, effect=type(effect).__name__, effects=count)
        del self._queues[key], self._tasks[key]
        self._states.unblock(key)

    def reset(self) -> None:
        """Drop pending effects: partitions were reassigned, and their owner reads the records again."""
        for task in self._tasks.values():
            task.cancel()
        self._tasks.clear()
        self._queues.clear()

    async def close(self) -> None:
        """Stop at once. Effects that were not done are repeated after the restart."""
        tasks = list(self._tasks.values())
        self.reset()
        await asyncio.gather(*tasks, return_exceptions=True)
