"""A process writes only while the group must still count it as a member."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest

from dispatchai.engine.write_lease import Lease
from tests.crash.unsafe import without


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


def lease() -> tuple[Lease, Clock]:
    clock = Clock()
    made = Lease(6.0, clock)
    made.assigned(1, clock.now)
    made.resumed()
    return made, clock


def test_before_the_first_assignment_nothing_may_be_written() -> None:
    assert not Lease(6.0).open


def test_a_process_that_was_stopped_beyond_the_session_timeout_may_not_write() -> None:
    made, clock = lease()
    clock.now += 5.9
    assert made.open
    assert made.left_s == pytest.approx(0.1)
    clock.now += 0.2
    assert not made.open
    assert made.left_s < 0


def test_without_the_rule_everything_is_written_at_any_time() -> None:
    made = Lease(6.0, Clock())
    made.revoked()
    with without("no-lease"):
        assert made.valid
        assert made.open
    assert not made.open


def test_an_answered_heartbeat_counts_from_when_it_was_sent() -> None:
    made, clock = lease()
    clock.now += 5.0
    made.renewed(1, 102.0)
    clock.now = 107.9
    assert made.open
    clock.now = 108.1
    assert not made.open


def test_a_heartbeat_that_was_overtaken_shortens_nothing() -> None:
    made, clock = lease()
    made.renewed(1, 104.0)
    made.renewed(1, 102.0)
    clock.now = 109.9
    assert made.open


def test_a_heartbeat_of_another_generation_says_nothing() -> None:
    made, clock = lease()
    made.renewed(2, 105.0)
    clock.now = 107.0
    assert not made.valid


def test_in_a_rebalance_agents_may_not_write_but_what_was_sent_goes_out() -> None:
    made, _ = lease()
    made.revoked()
    assert made.valid
    assert not made.open
    made.assigned(2, 101.0)
    assert not made.open, "the states are not recovered yet"
    made.resumed()
    assert made.open


async def test_who_waits_goes_on_with_the_next_heartbeat() -> None:
    made, clock = lease()
    clock.now += 10
    waiting = asyncio.create_task(made.wait_open())
    await asyncio.sleep(0)
    made.renewed(2, clock.now)
    await asyncio.sleep(0)
    assert not waiting.done()
    made.renewed(1, clock.now)
    await waiting
