"""Counts of the commands that were sent to Telnyx, and what Prometheus is shown of them."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import get_args

from prometheus_client.core import CounterMetricFamily, Metric

from dispatchai.telnyx.commands import COMMANDS, Outcome


@dataclass(slots=True)
class CommandCounts:
    """How the commands ended since the process started."""

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By action and type of the outcome, such as ("answer", "Done")."""
    retries: Counter[str] = field(default_factory=Counter)
    """Tries beyond the first of a command, by action."""

    def as_json(self) -> dict[str, dict[str, int]]:
        """The counts as nested objects: of each action the outcomes, and `retries` by action."""
        counted: dict[str, dict[str, int]] = {"retries": dict(self.retries)}
        for (action, outcome), count in sorted(self.outcomes.items()):
            counted.setdefault(action, {})[outcome] = count
        return counted


class CommandCollector:
    """Shows the counts to Prometheus, as they are at a scrape."""

    def __init__(self, counts: CommandCounts) -> None:
        self._counts = counts

    def collect(self) -> Iterable[Metric]:
        """Called at a scrape."""
        outcomes = CounterMetricFamily(
            "dispatchai_commands", "Commands to the carrier by how they ended.", labels=["action", "outcome"]
        )
        # Zeros too: Prometheus sees no increase in a counter that begins with its first failure.
        for action, outcome in itertools.product(COMMANDS, get_args(Outcome)):
            outcomes.add_metric([action, outcome.__name__], self._counts.outcomes[action, outcome.__name__])
        yield outcomes
        retries = CounterMetricFamily(
            "dispatchai_command_retries", "Tries beyond the first of a command.", labels=["action"]
        )
        for action in COMMANDS:
            retries.add_metric([action], self._counts.retries[action])
        yield retries
