"""What the soak reports about memory."""

from __future__ import annotations

from bench.calls import Stages
from bench.soak import WARM_S, Period, growth


def periods(*megabytes: int, every_s: float = WARM_S / 2) -> list[Period]:
    """Periods of one length, with the memory that a process took in each."""
    return [
        Period((number + 1) * every_s, Stages(), [], {"worker": [size * 1_000_000]}, 0)
        for number, size in enumerate(megabytes)
    ]


def test_growth_in_the_warm_up_does_not_count() -> None:
    assert growth(periods(50, 90, 100, 100, 100), "worker") == "+0.0 %"


def test_growth_after_the_warm_up_is_given_per_hour() -> None:
    assert growth(periods(50, 90, 100, 101), "worker") == "+12.0 %"


def test_the_first_half_of_a_short_run_is_its_warm_up() -> None:
    assert growth(periods(90, 95, 100, 101, every_s=60), "worker") == "+60.0 %"


def test_a_single_period_after_the_warm_up_shows_no_growth() -> None:
    assert growth(periods(50, 90, 100), "worker") == "n/a"
