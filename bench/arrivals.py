"""When calls arrive and how long they last, drawn from distributions that were fitted to real calls for service.

The distributions are in arrivals.json. `python -m bench.arrivals CALLS.CSV` fits them again, from a file with a column
`date_time` that has the time of a call (ISO 8601) in each line.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Final

import numpy as np

FILE: Final = Path(__file__).parent / "arrivals.json"

_STEPS: Final = 20
"""Steps between the quantiles that are kept."""

_HOUR_S: Final = 3600


@dataclass(frozen=True, slots=True)
class Planned:
    """A call that arrives `at_s` seconds after the beginning and lasts for `length_s` seconds."""

    at_s: float
    length_s: float


@dataclass(frozen=True, slots=True)
class Arrivals:
    """The fitted distributions. `gaps` are quantiles of the time between two calls, in units of its mean."""

    gaps: tuple[float, ...]
    median_s: float
    sigma: float

    @classmethod
    def load(cls) -> Arrivals:
        """The distributions of the file."""
        content = json.loads(FILE.read_text(encoding="utf-8"))
        lengths = content["lengths"]
        return cls(tuple(content["gaps"]["quantiles"]), lengths["median_s"], lengths["sigma"])

    @property
    def mean_s(self) -> float:
        """Mean length of a call, of the log-normal distribution."""
        return self.median_s * math.exp(self.sigma**2 / 2)

    def gap(self, random: Random) -> float:
        """Time to the next call, in units of the mean gap."""
        at = random.random() * _STEPS
        below = int(at)
        low, high = self.gaps[below], self.gaps[below + 1]
        return low + (high - low) * (at - below)

    def length_s(self, random: Random) -> float:
        """How long a call lasts."""
        return random.lognormvariate(math.log(self.median_s), self.sigma)

    def left_s(self, random: Random) -> float:
        """How long a call goes on that is live at a random moment: longer calls are found more often, at any point."""
        return random.lognormvariate(math.log(self.median_s) + self.sigma**2, self.sigma) * random.random()

    def plan(self, live: int, ramp_s: float, random: Random, *, at_first: int | None = None) -> Iterator[Planned]:
        """An endless series of calls in the order of their times, about `live` of which are live at any time after
        `ramp_s`. Those that are live at first, `at_first` or as many, arrive during the ramp."""
        first = live if at_first is None else at_first
        for number in range(first):
            at_s = number / first * ramp_s
            yield Planned(at_s, ramp_s - at_s + self.left_s(random))
        # The mean of the gaps that are drawn. Between two quantiles they are taken as uniform, so it is not quite 1.
        mean_gap = sum(low + high for low, high in pairwise(self.gaps)) / 2 / _STEPS
        at_s = ramp_s
        while True:
            at_s += self.gap(random) / mean_gap * self.mean_s / live
            yield Planned(at_s, self.length_s(random))


def fit_gaps(times_s: Sequence[float]) -> list[float]:
    """Quantiles of the times between neighbouring calls, each divided by the mean of its hour."""
    ordered = sorted(times_s)
    by_hour = Counter(int(time_s // _HOUR_S) for time_s in ordered)
    gaps = [(later - time_s) * by_hour[int(time_s // _HOUR_S)] / _HOUR_S for time_s, later in pairwise(ordered)]
    return [round(float(value), 3) for value in np.quantile(gaps, np.linspace(0, 1, _STEPS + 1))]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.arrivals", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("calls", type=Path, help="CSV with a column date_time")
    given = parser.parse_args()
    with given.calls.open(encoding="utf-8") as file:
        times = [datetime.fromisoformat(row["date_time"]).replace(tzinfo=UTC) for row in csv.DictReader(file)]
    content = json.loads(FILE.read_text(encoding="utf-8"))
    content["gaps"]["quantiles"] = fit_gaps([time.timestamp() for time in times])
    FILE.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
