"""The plan of a run: the strikes against its processes, and its callers. Pure: a seed gives the same plan each time.

Decides which processes are hit, how often and for how long; `processes` decides how one is killed.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from enum import StrEnum
from random import Random
from typing import Final

from dispatchai.simulator import Faults

UNDISTURBED: Final = 0
"""The seed of an undisturbed run."""

FIRST_STRIKE_S: Final = 2.0
"""When strikes begin, counted from the first call: some callers are answered then, some are waiting, and some have not
called."""

REST_S: Final = 4.0
"""How long a process is left alone after it was started again or woken: about as long as it takes to start."""

DOWN_LONGEST_S: Final = 3.0
"""A killed process is started again within this time."""

FREEZE_S: Final = (2.0, 10.0)
LONG_FREEZE_S: Final = (10.5, 14.0)
"""Beyond the session timeout of ten seconds: the group goes on without the worker, which wakes up as a zombie."""

RESTARTS: Final = 0.4
"""The share of restarts in order among those of kills, except of the broker's."""

LONG_FREEZES: Final = 0.3
"""The share of long freezes among those of processes with a session."""

STRIKES: Final = (7, 10)
"""Fewest and most kills and freezes of a run."""

CUTS: Final = (1, 2)
"""Fewest and most times that the network is cut in a run."""

BROKER_STRIKES_MAX: Final = 2
GATEWAY_STRIKES_MAX: Final = 2
"""Most kills of the gateway: each costs all calls some seconds, and a stream is started again at most five times."""

JOINS_BY: Final = 0.4
LEAVES_FROM: Final = 0.6
"""When a third worker joins at the latest, and when one leaves at the earliest, as parts of the disturbed time."""

CALLS_APART_S: Final = 0.5
SPEAKS_S: Final = (10.0, 16.0)
"""How long a caller speaks."""

LINES: Final = 2
"""How many sets of line faults there are. Few, so that many seeds share an undisturbed run."""


class Victim(StrEnum):
    """A process of the run."""

    GATEWAY = "gateway"
    WORKER_1 = "worker-1"
    WORKER_2 = "worker-2"
    WORKER_3 = "worker-3"
    """Not running at the start; it joins."""
    SPEECH = "speech"
    BROKER = "broker"
    LINE = "line"
    """Not a process, but the network between one of the workers and Kafka."""


class Group(StrEnum):
    """Processes that may be hit or spared together."""

    GATEWAY = "gateway"
    WORKERS = "workers"
    SPEECH = "speech"
    BROKER = "broker"
    NETWORK = "network"


MEMBERS: Final[Mapping[Group, tuple[Victim, ...]]] = {
    Group.GATEWAY: (Victim.GATEWAY,),
    Group.WORKERS: (Victim.WORKER_1, Victim.WORKER_2),
    Group.SPEECH: (Victim.SPEECH,),
    Group.BROKER: (Victim.BROKER,),
    Group.NETWORK: (Victim.LINE,),
}

ON_THE_LINE: Final = Victim.WORKER_2
"""Whose network is cut."""

WORKERS: Final = frozenset({Victim.WORKER_1, Victim.WORKER_2, Victim.WORKER_3})
WITH_SESSION: Final = WORKERS | {Victim.SPEECH}
"""Members of a consumer group."""


class Kind(StrEnum):
    """The kind of a strike."""

    KILL = "kill"
    """SIGKILL; started again after `lasts_s`."""
    RESTART = "restart"
    """SIGTERM; started again `lasts_s` after its end."""
    FREEZE = "freeze"
    """SIGSTOP, and after `lasts_s` SIGCONT."""
    JOIN = "join"
    """It is started for the first time."""
    LEAVE = "leave"
    """SIGTERM; it does not come back."""
    CUT = "cut"
    """Nothing gets through for `lasts_s`."""


@dataclass(frozen=True, slots=True)
class Strike:
    """One entry of a schedule. Times in seconds, `at_s` from the first call on."""

    at_s: float
    victim: Victim
    kind: Kind
    lasts_s: float = 0.0

    @property
    def ends_s(self) -> float:
        """When the process runs again."""
        return self.at_s + self.lasts_s

    def __str__(self) -> str:
        lasts = f" {self.lasts_s:.1f} s" if self.lasts_s else ""
        return f"{self.at_s:5.1f} s  {self.kind} {self.victim}{lasts}"


@dataclass(frozen=True, slots=True)
class PlannedCall:
    """A caller: when he calls (from the first call on), which recording he says for how long, on which line."""

    number: int
    at_s: float
    seconds: float
    faults: Faults

    @property
    def from_number(self) -> str:
        """The caller's number, which identifies the same call in two runs."""
        return f"+1555010{self.number:04d}"


def calls(seed: int, count: int) -> tuple[PlannedCall, ...]:
    """The callers of a run. Their line is faulty: one half loses, doubles and swaps frames as well as webhooks, the
    other half loses none, so that its words are those that were said."""
    line = seed % LINES
    dice = Random(f"line:{line}")
    webhooks = Faults(
        seed=line,
        webhook_duplicates=0.2,
        webhook_retries=0.2,
        webhook_losses=0.1,
        webhook_delay_s=0.6,
        frame_duplicates=0.02,
        frame_swaps=0.02,
        command_failures=0.1,
        command_lost_answers=0.05,
    )
    lossy = Faults(**{name: getattr(webhooks, name) for name in webhooks.__slots__} | {"frame_losses": 0.01})
    return tuple(
        PlannedCall(
            number,
            at_s=number * CALLS_APART_S,
            seconds=round(dice.uniform(*SPEAKS_S), 2),
            faults=lossy if number % 2 else webhooks,
        )
        for number in range(count)
    )


def _cuts(seed: int, until_s: float, gone_from: float) -> list[Strike]:
    """The cuts of the network of one worker, which leaves at `gone_from`. They use dice of their own, so that the
    other strikes are the same with and without them."""
    dice = Random(f"network:{seed}")
    count = dice.randint(*CUTS)
    cuts: list[Strike] = []
    for slot in range(count):
        at_s = FIRST_STRIKE_S + (until_s - FIRST_STRIKE_S) * (slot + dice.random() / 2) / count
        lasts_s = dice.uniform(*dice.choice((FREEZE_S, LONG_FREEZE_S)))
        whole_from = cuts[-1].ends_s + REST_S if cuts else 0.0
        if whole_from <= at_s and at_s + lasts_s + REST_S < gone_from:
            cuts.append(Strike(round(at_s, 2), Victim.LINE, Kind.CUT, round(lasts_s, 2)))
    return cuts


def schedule(seed: int, groups: Set[Group], until_s: float) -> tuple[Strike, ...]:
    """The strikes within `until_s` against the processes of `groups`, in order of time. None if `seed` is 0.

    A process is hit again only after it has run for some time. Two may be down at once.
    """
    if seed == UNDISTURBED:
        return ()
    dice = Random(f"crash:{seed}")
    in_order = Random(f"restart:{seed}")  # of its own, so that all else of a seed stays as it is
    strikes: list[Strike] = []
    gone_from: dict[Victim, float] = {}
    if Group.WORKERS in groups:
        strikes.append(Strike(dice.uniform(FIRST_STRIKE_S, until_s * JOINS_BY), Victim.WORKER_3, Kind.JOIN))
        leaver = dice.choice(sorted(WORKERS))
        gone_from[leaver] = dice.uniform(until_s * LEAVES_FROM, until_s)
        strikes.append(Strike(gone_from[leaver], leaver, Kind.LEAVE))
    if Group.NETWORK in groups:
        strikes += _cuts(seed, until_s, gone_from.get(ON_THE_LINE, float("inf")))
    targets = [victim for group in sorted(groups - {Group.NETWORK}) for victim in MEMBERS[group]]
    left = {Victim.BROKER: BROKER_STRIKES_MAX, Victim.GATEWAY: GATEWAY_STRIKES_MAX}
    runs_from: dict[Victim, float] = {}
    count = dice.randint(*STRIKES)
    for slot in range(count):
        # One in each slot of time, so that no slot is quiet.
        at_s = FIRST_STRIKE_S + (until_s - FIRST_STRIKE_S) * (slot + dice.random()) / count
        kind = dice.choice((Kind.KILL, Kind.FREEZE))
        short, long = dice.uniform(*FREEZE_S), dice.uniform(*LONG_FREEZE_S)
        is_long, down = dice.random() < LONG_FREEZES, dice.uniform(0.0, DOWN_LONGEST_S)
        free = [
            victim
            for victim in targets
            if runs_from.get(victim, 0.0) <= at_s
            and left.get(victim, count) > 0
            and at_s + LONG_FREEZE_S[1] + REST_S < gone_from.get(victim, float("inf"))
        ]
        if not free:
            continue
        victim = dice.choice(free)
        if kind is Kind.KILL and victim is not Victim.BROKER and in_order.random() < RESTARTS:
            kind = Kind.RESTART
        lasts_s = down if kind in (Kind.KILL, Kind.RESTART) else long if is_long and victim in WITH_SESSION else short
        strike = Strike(round(at_s, 2), victim, kind, round(lasts_s, 2))
        strikes.append(strike)
        runs_from[victim] = strike.ends_s + REST_S
        if victim in left:
            left[victim] -= 1
    return tuple(sorted(strikes, key=lambda strike: strike.at_s))
