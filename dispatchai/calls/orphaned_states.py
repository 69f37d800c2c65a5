"""Decides when a state is an orphan for good: for how long keys have had an orphaned state.

A state is deleted when `dispatchai.expired` is read. A signal, an utterance or a frame that is read later makes a new
state, of a call that nothing else is known of, so no timer follows: an orphan. Signals and text may also be read before
the events of a call, hence a state counts as orphaned for good only after some time. That time is the time for which
this process has seen the state, not that of the records: a process that catches up reads old records of calls whose
states it must keep. A process that is started again begins to count from nothing.

Pure: the time is an argument. `agents.orphaned_states` looks through the states.
"""

from __future__ import annotations

from collections.abc import Iterable


class OrphanAges:
    """For how long keys have had an orphaned state, as far as looks saw it. Keeps a number for each such key."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._since_s: dict[str, float] = {}

    def over_limit(self, orphaned: Iterable[str], now_s: float) -> list[str]:
        """Look at the keys whose state is orphaned at `now_s`, in seconds of any steady clock.

        Returns those whose state was orphaned in this and each earlier look for at least the limit. A key is returned
        once in each such period, so that what follows from it has time to take effect.
        """
        since_s = {key: self._since_s.get(key, now_s) for key in orphaned}
        over = [key for key, since in since_s.items() if now_s - since >= self._limit_s]
        since_s.update(dict.fromkeys(over, now_s))
        self._since_s = since_s
        return over
