"""The comparison of a rolling restart finds what it is there for."""

from __future__ import annotations

from bench.restarts import PROCESSES, Restart, unclean_starts
from bench.rolling_restart import Heard, Outcome, Plan

WHOLE = Heard("a", 100, 100, 100, 100, 0, complete=True, degraded=None, gaps=())


def heard(**changes: object) -> list[str]:
    values = {name: getattr(WHOLE, name) for name in WHOLE.__slots__}
    return list(Heard(**{**values, **changes}).problems())


def test_a_packet_with_all_audio_and_one_that_says_what_is_missing_are_right() -> None:
    assert heard() == []
    assert heard(sent=90, recorded=85, counted=85, said_missing=15, degraded="about 0.3 s", gaps=(15,)) == []


def test_a_packet_that_keeps_a_loss_quiet_is_found() -> None:
    (quiet,) = heard(recorded=99, counted=99, gaps=(1,))
    assert quiet == "100 frames were sent, 99 are in the packet, which says nothing of it"
    (vague,) = heard(sent=50, recorded=50, counted=50, said_missing=10, degraded="about 0.2 s", gaps=(50,))
    assert vague == "40 frames are missing beyond the 10 that its packet says"
    assert heard(counted=90) != []
    assert heard(complete=False) != []


def test_the_metric_of_the_alert_is_the_one_compared() -> None:
    assert unclean_starts() == "dispatchai_unclean_starts_total"


def outcome(kill: str | None, moved: dict[str, float], code: int = 0) -> Outcome:
    restarts = [Restart(name, name == kill, 0.0, code, 1.0, 1.0) for name in PROCESSES]
    before = dict.fromkeys(PROCESSES, 2.0)
    after = {name: count + moved.get(name, 0.0) for name, count in before.items()}
    return Outcome(Plan(0, 1.0, 1.0, kill), restarts, unclean_before=before, unclean_after=after)


def test_an_unclean_start_must_follow_a_kill_and_nothing_else() -> None:
    assert list(outcome(None, {}).problems()) == []
    assert list(outcome("worker-2", {"worker-2": 1.0}).problems()) == []
    assert len(list(outcome(None, {"speech-1": 1.0}).problems())) == 1
    assert len(list(outcome("worker-2", {}).problems())) == 1
    assert len(list(outcome(None, {}, code=1).problems())) == len(PROCESSES)
