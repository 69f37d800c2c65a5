"""Gives up orphaned states: those that a signal, an utterance or a frame made of a call whose own state was deleted.

`dispatchai.calls.orphaned_states` decides when a state counts as orphaned for good. This looks through the states of an
agent again and again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

import structlog
from faust.types import TP

from dispatchai.calls.events import EventType, own_event
from dispatchai.calls.orphaned_states import OrphanAges
from dispatchai.calls.timers import timer_id
from dispatchai.engine.app import App
from dispatchai.engine.keyed_state import KeyedStates
from dispatchai.kafka.topics import Topic
from dispatchai.process.clock import now_micros
from dispatchai.process.log_limit import LogLimit
from dispatchai.records import encode

log = structlog.get_logger(__name__)

LOOK_EVERY_S: Final = 60.0
"""How often states are looked through. An orphan costs memory and nothing else, and is given up after hours."""

LOOKED_AT_ONCE: Final = 32
"""States that are looked at before other tasks may run: an evicted one is decoded at the first look, which takes some
20 µs, or a millisecond for that of a long call's words."""

GiveUp = Callable[[str, TP, int], Awaitable[None]]
"""(call id, partition, the next offset to be read of it): give up the state of that call."""


class OrphanedStates:
    """Gives up states that were orphaned for `after_s` seconds, in the partitions of `topic` that are read here."""

    def __init__(
        self,
        app: App,
        states: KeyedStates[Any],
        topic: str,
        give_up: GiveUp,
        *,
        after_s: float,
        is_orphaned: Callable[[Any], bool] = lambda _: True,
    ) -> None:
        """`is_orphaned` must be the same in every call for a state."""
        self._app = app
        self._states = states
        self._topic = topic
        self._give_up = give_up
        self._is_orphaned = is_orphaned
        self._ages = OrphanAges(after_s)
        self._given_up_log = LogLimit()

    async def run(self) -> None:
        """Look through the states again and again, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            await self.look(asyncio.get_running_loop().time())

    async def look(self, now_s: float) -> None:
        """Look through the states at `now_s`, in seconds of any steady clock."""
        for call_id in self._ages.over_limit(await self._orphaned(), now_s):
            if (partition := self._states.partition_of(call_id)) is None:
                continue
            tp = TP(self._topic, partition)
            if (next_offset := self._app.stalls.next_offset(tp)) is not None:  # else another process owns it by now
                if count := self._given_up_log.add():
                    log.warning("orphaned_state_given_up", call_id=call_id, states=count)
                await self._give_up(call_id, tp, next_offset)

    async def _orphaned(self) -> list[str]:
        orphaned = []
        for number, (key, is_orphaned) in enumerate(self._states.match(self._is_orphaned), start=1):
            if number % LOOKED_AT_ONCE == 0:
                await asyncio.sleep(0)
            if is_orphaned:
                orphaned.append(key)
        return orphaned


def make(app: App, states: KeyedStates[Any], *, is_orphaned: Callable[[Any], bool], after_s: float) -> OrphanedStates:
    """Write `dispatchai.expired` for the orphans among `states`.

    It is a record, as for every timer that fires: other agents that keep something of the call give it up too.
    """

    async def expire(call_id: str, tp: TP, next_offset: int) -> None:
        now = now_micros()
        expired = own_event(
            EventType.EXPIRED,
            timer_id(call_id, EventType.EXPIRED),
            occurred_at=now,
            received_at=now,
            call_control_id="",
            payload=None,
        )
        await app.emitter.send(Topic.CALL_EVENTS, call_id.encode(), encode(expired), partition=tp.partition)

    made = OrphanedStates(app, states, Topic.CALL_EVENTS, expire, after_s=after_s, is_orphaned=is_orphaned)
    app.background(made.run)
    return made
