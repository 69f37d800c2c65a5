"""The plan of a run is a function of the seed, and hits only the processes that it may hit, often enough and not too
often."""

from __future__ import annotations

import pytest

from tests.crash.__main__ import groups, seeds
from tests.crash.schedule import (
    LINES,
    LONG_FREEZE_S,
    MEMBERS,
    REST_S,
    WITH_SESSION,
    WORKERS,
    Group,
    Kind,
    Victim,
    calls,
    schedule,
)

UNTIL_S = 33.0
SEEDS = range(1, 200)
EVERYONE = frozenset(Group)


def test_a_seed_gives_the_same_plan_each_time() -> None:
    for seed in SEEDS:
        assert schedule(seed, EVERYONE, UNTIL_S) == schedule(seed, EVERYONE, UNTIL_S)
        assert calls(seed, 12) == calls(seed, 12)
    assert len({schedule(seed, EVERYONE, UNTIL_S) for seed in SEEDS}) == len(SEEDS)


def test_seed_0_is_left_alone() -> None:
    assert schedule(0, EVERYONE, UNTIL_S) == ()


@pytest.mark.parametrize("spared", list(Group))
def test_a_spared_group_is_not_hit(spared: Group) -> None:
    hit = {strike.victim for seed in SEEDS for strike in schedule(seed, EVERYONE - {spared}, UNTIL_S)}
    assert hit & set(MEMBERS[spared]) == set()
    assert hit >= {victim for group in EVERYONE - {spared} for victim in MEMBERS[group]}


HITS = (Kind.KILL, Kind.RESTART, Kind.FREEZE)


def test_processes_are_restarted_in_order_too_and_the_broker_is_not() -> None:
    restarts = [strike for seed in SEEDS for strike in schedule(seed, EVERYONE, UNTIL_S) if strike.kind is Kind.RESTART]
    assert len(restarts) > len(SEEDS) / 2
    hit = {strike.victim for strike in restarts}
    assert hit >= {Victim.GATEWAY, Victim.SPEECH, Victim.WORKER_1, Victim.WORKER_2}
    assert Victim.BROKER not in hit


def test_a_process_is_hit_again_only_after_it_has_run() -> None:
    for seed in SEEDS:
        free_from: dict[Victim, float] = {}
        for strike in schedule(seed, EVERYONE, UNTIL_S):
            assert strike.at_s >= free_from.get(strike.victim, 0.0)
            free_from[strike.victim] = strike.ends_s + (REST_S if strike.kind in HITS else 0.0)


def test_one_worker_joins_and_one_of_the_others_leaves() -> None:
    for seed in SEEDS:
        strikes = schedule(seed, EVERYONE, UNTIL_S)
        (join,) = (strike for strike in strikes if strike.kind is Kind.JOIN)
        (leave,) = (strike for strike in strikes if strike.kind is Kind.LEAVE)
        assert join.victim is Victim.WORKER_3
        assert leave.victim in WORKERS
        assert leave.at_s > join.at_s
        assert all(each.ends_s < leave.at_s for each in strikes if each.victim is leave.victim and each is not leave)


def test_long_freezes_hit_only_processes_with_a_session() -> None:
    long = [
        strike
        for seed in SEEDS
        for strike in schedule(seed, EVERYONE, UNTIL_S)
        if strike.kind is Kind.FREEZE and strike.lasts_s >= LONG_FREEZE_S[0]
    ]
    assert len(long) > len(SEEDS) / 4
    assert {strike.victim for strike in long} <= WITH_SESSION


def test_seeds_share_the_undisturbed_runs_of_their_line() -> None:
    assert {calls(seed, 12) for seed in SEEDS} == {calls(line, 12) for line in range(LINES)}


def test_half_of_the_callers_lose_frames_on_the_line() -> None:
    losses = [call.faults.frame_losses > 0 for call in calls(1, 12)]
    assert losses.count(True) == losses.count(False) == 6


def test_the_command_line_names_seeds_and_groups() -> None:
    assert seeds("1-3,7") == [1, 2, 3, 7]
    assert groups("all", "apache") == frozenset(Group)
    assert groups("all", "embedded") == frozenset(Group) - {Group.BROKER, Group.NETWORK}
    assert groups("workers, speech", "apache") == {Group.WORKERS, Group.SPEECH}
