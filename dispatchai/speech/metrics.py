"""The metrics of a recogniser for Prometheus. Decides their names; the engine counts."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from dispatchai.speech.recognizer import Recognizer


class Exposed:
    """Shows `Recognizer.stats` at each scrape."""

    def __init__(self, recognizer: Recognizer) -> None:
        self._recognizer = recognizer

    def collect(self) -> Iterable[Metric]:
        """Called at a scrape."""
        stats = self._recognizer.stats()
        prefix = "dispatchai_recognizer_"
        yield GaugeMetricFamily(prefix + "streams", "Streams that are being heard.", stats.streams)
        yield GaugeMetricFamily(
            prefix + "unheard_seconds", "Audio that waits to be heard, of all streams.", stats.unheard_ms / 1000
        )
        yield GaugeMetricFamily(
            prefix + "unheard_longest_seconds",
            "Audio that waits to be heard, of the stream furthest behind.",
            stats.unheard_longest_ms / 1000,
        )
        yield GaugeMetricFamily(prefix + "processes", "Processes that should hear.", stats.processes)
        yield GaugeMetricFamily(prefix + "processes_ready", "Processes that hear.", stats.processes_ready)
        yield CounterMetricFamily(prefix + "restarts", "Processes that ended and were replaced.", stats.restarts)
        failures = CounterMetricFamily(
            prefix + "failures", "Streams that were lost and are heard again or given up.", labels=["reason"]
        )
        for reason, count in stats.failures.items():
            failures.add_metric([reason], count)
        yield failures
