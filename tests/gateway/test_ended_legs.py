"""Which legs are known to have hung up."""

from __future__ import annotations

from dispatchai.gateway.ended_legs import EndedLegs
from dispatchai.telnyx.stream_tokens import VALID_S


def test_a_leg_is_remembered_while_its_token_may_be_valid() -> None:
    ended = EndedLegs()
    ended.add("a", 0.0)
    ended.add("b", float(VALID_S))
    assert ("a" in ended, "b" in ended, "c" in ended) == (True, True, False)
    ended.add("c", VALID_S + 1.0)
    assert ("a" in ended, "b" in ended, "c" in ended) == (False, True, True)


def test_the_oldest_give_way() -> None:
    ended = EndedLegs(most=2)
    for leg in ("a", "b", "a", "c"):
        ended.add(leg, 0.0)
    assert ["a" in ended, "b" in ended, "c" in ended] == [True, False, True]
