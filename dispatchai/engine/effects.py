"""Work outside Kafka that an agent owes for a record: done in order for each key, beside the stream.

A slow outside must not hold up the records of other keys, so an effect runs in a task of its key. Until the last
effect of a key is done its state is not snapshotted, so a crash reads the record again and the effect is owed again:
an effect must therefore be one that can be repeated under the same id.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar

import structlog

from dispatchai.engine.keyed_state import States

log = structlog.get_logger(__name__)

E = TypeVar("E")


class Effects(Generic[E]):
    """The effects owed for the keys of `states`, each carried out by `perform(key, effect)`."""

    def __init__(self, states: States[Any], perform: Callable[[str, E], Awaitable[None]]) -> None:
        self._states = states
        self._perform = perform
        self._queues: dict[str, deque[E]] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def submit(self, key: str, effects: Sequence[E]) -> None:
        """Owe `effects` for `key`, after those that are owed already."""
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
                # An effect that fails for good must not keep the call's other effects, nor its state, waiting.
                log.exception("effect_failed", key=key, effect=type(effect).__name__)
        del self._queues[key], self._tasks[key]
        self._states.unblock(key)

    def forget(self) -> None:
        """Drop what is owed: the partitions were assigned anew, and who has them reads the records again."""
        for task in self._tasks.values():
            task.cancel()
        self._tasks.clear()
        self._queues.clear()

    async def close(self) -> None:
        """Stop at once; what was not done is owed again after the restart."""
        tasks = list(self._tasks.values())
        self.forget()
        await asyncio.gather(*tasks, return_exceptions=True)
