"""The call legs that have hung up, for as long as a stream's token could still open a socket for them.

An open stream of such a leg is closed by `media_sockets`.

Decides how many are remembered, and how long. A gateway learns of a hangup by the webhook that it stores itself; one
that another gateway took ends the token's use here when the token expires.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from dispatchai.telnyx.stream_tokens import VALID_S

ENDED_MAX: Final = 50_000
"""Legs that are remembered, about 10 MB: 55 hangups a second for as long as a token is valid."""


class EndedLegs:
    """The control ids of legs that are over. Times are in seconds of one clock."""

    def __init__(self, most: int = ENDED_MAX) -> None:
        self._most = most
        self._at: OrderedDict[str, float] = OrderedDict()
        self.on_ended: Callable[[str], None] = lambda _: None
        """Called with each leg that is added."""

    def add(self, call_control_id: str, now_s: float) -> None:
        """The leg has hung up."""
        self._at[call_control_id] = now_s
        self._at.move_to_end(call_control_id)
        while len(self._at) > self._most or next(iter(self._at.values())) < now_s - VALID_S:
            self._at.popitem(last=False)
        self.on_ended(call_control_id)

    def __contains__(self, call_control_id: str) -> bool:
        """Whether the leg is known to have hung up."""
        return call_control_id in self._at
