"""Handles the requests for commands of one call before they reach it: repeated ids, faults, and a count of effects.

Decides whether a request reaches the call and how it is answered. The call decides whether it can obey.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from dispatchai.simulator import commands
from dispatchai.simulator.commands import ApiError, Request
from dispatchai.simulator.faults import CommandFate, Faults

COMMAND_MEMORY_S: Final = 60.0
"""How long a command_id is remembered and its command ignored, as Telnyx documents."""

IGNORED_S: Final = 8.0
"""How long an ignored request gets no answer: longer than the five seconds that a client waits for one."""


@dataclass(frozen=True, slots=True)
class CommandReport:
    """The requests under one command_id (None for requests without one), and how many of them had an effect."""

    command_id: str | None
    action: str
    requests: int
    effects: int


@dataclass(frozen=True, slots=True)
class Refused:
    """The request had no effect; the error says why."""

    error: ApiError


@dataclass(frozen=True, slots=True)
class Obeyed:
    """The request has its effect, by this request or an earlier one."""


@dataclass(frozen=True, slots=True)
class Unanswered:
    """The connection breaks before an answer."""


Reply = Obeyed | Refused | Unanswered


@dataclass(slots=True)
class _Entry:
    action: str
    requests: int = 0
    effects: int = 0
    obeyed_at: float = field(default=-COMMAND_MEMORY_S)


class CommandHandler:
    """Handles the requests for call `number`. `obey` does what a request asks, or returns the error."""

    def __init__(self, number: int, faults: Faults, obey: Callable[[Request], ApiError | None]) -> None:
        self._number = number
        self._faults = faults
        self._obey = obey
        self._entries: dict[tuple[str | None, str], _Entry] = {}

    def report(self) -> tuple[CommandReport, ...]:
        """Every command so far, in the order of their first requests."""
        return tuple(
            CommandReport(command_id, action, entry.requests, entry.effects)
            for (command_id, action), entry in self._entries.items()
        )

    async def handle(self, action: str, request: Request) -> Reply:
        """Handle one request for `action`. Returns its reply."""
        entry = self._entries.setdefault((request.command_id, action), _Entry(action))
        entry.requests += 1
        if self._faults.command_delay_s:
            await asyncio.sleep(self._faults.command_delay_s)
        fate = CommandFate.SERVED
        if entry.requests == 1:
            order = sum(each.action == action for each in self._entries.values())
            fate = self._faults.command_fate(self._faults.rng(self._number, f"command {action} {order}"))
        match fate:
            case CommandFate.FAILED:
                return Refused(commands.SERVER_ERROR)
            case CommandFate.LIMITED:
                return Refused(commands.RATE_LIMITED)
            case CommandFate.IGNORED:
                await asyncio.sleep(IGNORED_S)
                return Unanswered()
            case CommandFate.UNANSWERED:
                self._obey_once(entry, request)
                return Unanswered()
            case CommandFate.SERVED:
                refusal = self._obey_once(entry, request)
                return Obeyed() if refusal is None else Refused(refusal)

    def _obey_once(self, entry: _Entry, request: Request) -> ApiError | None:
        """Do what `request` asks, unless its command_id was obeyed within COMMAND_MEMORY_S."""
        now = asyncio.get_running_loop().time()
        if request.command_id is not None and now - entry.obeyed_at < COMMAND_MEMORY_S:
            return None
        refusal = self._obey(request)
        if refusal is None:
            entry.effects += 1
            entry.obeyed_at = now
        return refusal
