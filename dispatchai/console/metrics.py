"""The views' metrics. Every console reads all calls, so its numbers are those of the whole system."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from dispatchai.console.topic_feed import Feed


class Exposed:
    """Exposes the counts of a feed at the moment of a scrape."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed

    def collect(self) -> Iterable[Metric]:
        """Called by the registry at a scrape."""
        feed, counts = self._feed, self._feed.counts
        yield GaugeMetricFamily(
            "dispatchai_calls_live",
            "Calls in progress in the whole system: use the value of one console.",
            feed.live_calls,
        )
        yield GaugeMetricFamily(
            "dispatchai_calls_unheard",
            "Answered calls in the whole system whose callers are not heard: no frame yet, or none for some seconds.",
            feed.unheard_calls,
        )
        yield GaugeMetricFamily(
            "dispatchai_calls_final", "Finished calls in the queue of the whole system.", feed.final_calls
        )
        prefix = "dispatchai_view_"
        yield CounterMetricFamily(prefix + "records", "Records read for the page.", counts.records)
        yield CounterMetricFamily(prefix + "skipped", "Records that could not be read.", counts.skipped)
        yield CounterMetricFamily(
            prefix + "sessions", "Times that the topics were read from their beginning.", counts.sessions
        )
        yield GaugeMetricFamily(prefix + "subscribers", "Open pages.", feed.subscribers)
        yield CounterMetricFamily(
            prefix + "dropped_subscribers", "Pages disconnected because they did not read.", counts.dropped_subscribers
        )
        yield CounterMetricFamily(
            prefix + "refused_readers", "Readers refused because too many were being served.", counts.refused_readers
        )
        yield CounterMetricFamily(
            prefix + "not_shown",
            "Entries that could not be shown and were replaced by one that says so.",
            counts.not_shown,
        )
