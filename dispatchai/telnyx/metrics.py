"""Counts of the commands that were sent to Telnyx, and what Prometheus is shown of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from prometheus_client.core import CounterMetricFamily, Metric


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
        for (action, outcome), count in self._counts.outcomes.items():
            outcomes.add_metric([action, outcome], count)
        yield outcomes
        retries = CounterMetricFamily(
            "dispatchai_command_retries", "Tries beyond the first of a command.", labels=["action"]
        )
        for action, count in self._counts.retries.items():
            retries.add_metric([action], count)
        yield retries
