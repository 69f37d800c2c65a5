"""What is left of calls that are over: states that no event gives up.

A state is given up when `dispatchai.expired` is read. A signal, an utterance or a frame that is read later makes a
state anew, of a call of which nobody knows that there was one, so that no timer follows. Signals and text may also be
read before the events of a call that is about to be known, hence the rule goes by time, and by the time that this
process has seen the state rather than by the record's: one that catches up reads old records of calls that it must not
give up. A process that is started again counts anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

import structlog
from faust.types import TP

from dispatchai.calls.events import EventType, own_event
from dispatchai.calls.timers import timer_id
from dispatchai.engine.app import App
from dispatchai.engine.keyed_state import KeyedStates
from dispatchai.kafka.topics import Topic
from dispatchai.process.clock import now_micros
from dispatchai.records import encode

log = structlog.get_logger(__name__)


LOOK_EVERY_S: Final = 60.0
"""How often states are looked through. What is left over costs memory and nothing else, and is given up after hours."""

LOOKED_AT_ONCE: Final = 32
"""States that are looked at before others may run: one that only a snapshot holds is decoded at the first look, which
takes some 20 µs, or a millisecond for that of a long call's words."""


class Ages:
    """For how long keys have had a state, as far as looks saw it. Holds a number for each key that had one."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._since_s: dict[str, float] = {}

    async def over(self, states: Iterable[tuple[str, bool]], now_s: float) -> list[str]:
        """The keys whose state counts, and did in each look since one that is at least the limit ago. Each is told
        once in a limit. `states` says of each key whether its state counts; `now_s` is in seconds of any steady
        clock."""
        since_s: dict[str, float] = {}
        for number, (key, counts) in enumerate(states):
            if number % LOOKED_AT_ONCE == LOOKED_AT_ONCE - 1:
                await asyncio.sleep(0)
            if counts:
                since_s[key] = self._since_s.get(key, now_s)
        over = [key for key, since in since_s.items() if now_s - since >= self._limit_s]
        for key in over:
            since_s[key] = now_s
        self._since_s = since_s
        return over


GiveUp = Callable[[str, TP, int], Awaitable[None]]
"""(call id, partition, the next offset that is read of it): give the state of that call up."""


class Leftovers:
    """Gives up the states that count as left over for `after_s` seconds, where `topic` of their partition is read."""

    def __init__(
        self,
        app: App,
        states: KeyedStates[Any],
        topic: str,
        give_up: GiveUp,
        *,
        after_s: float,
        counts: Callable[[Any], bool] = lambda _: True,
    ) -> None:
        self._app = app
        self._states = states
        self._topic = topic
        self._give_up = give_up
        self._counts = counts
        self._ages = Ages(after_s)

    async def run(self) -> None:
        """Look through the states, again and again, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            await self.look(asyncio.get_running_loop().time())

    async def look(self, now_s: float) -> None:
        """Look through the states at `now_s`, in seconds of any steady clock."""
        for call_id in await self._ages.over(self._states.match(self._counts), now_s):
            if (partition := self._states.partition_of(call_id)) is None:
                continue
            tp = TP(self._topic, partition)
            if (next_offset := self._app.stalls.next_offset(tp)) is not None:  # else the partition is elsewhere by now
                log.warning("state_left_over", call_id=call_id)
                await self._give_up(call_id, tp, next_offset)


def make(app: App, states: KeyedStates[Any], *, counts: Callable[[Any], bool], after_s: float) -> Leftovers:
    """Look after `states`: of those that `counts` says are of no known call `dispatchai.expired` is written.

    A record, as every timer that fires: whoever else keeps something of the call gives it up as well.
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

    made = Leftovers(app, states, Topic.CALL_EVENTS, expire, after_s=after_s, counts=counts)
    app.background(made.run)
    return made
