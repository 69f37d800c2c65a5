"""Prometheus is shown how the commands to the carrier ended."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from dispatchai.telnyx.metrics import CommandCollector, CommandCounts


def shown(collector: CommandCollector) -> dict[tuple[str, tuple[str, ...]], float]:
    registry = CollectorRegistry()
    registry.register(collector)
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in registry.collect()
        for sample in family.samples
    }


def test_commands_are_shown_by_action_and_outcome() -> None:
    counts = CommandCounts()
    counts.outcomes["answer", "Done"] += 4
    counts.retries["answer"] += 1
    samples = shown(CommandCollector(counts))
    assert samples["dispatchai_commands_total", ("answer", "Done")] == 4
    assert samples["dispatchai_command_retries_total", ("answer",)] == 1
