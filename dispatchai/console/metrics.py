"""What the views of a worker show to Prometheus. Every worker reads all calls: these numbers are the system's."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from dispatchai.console.topic_feed import Feed


class Exposed:
    """Shows the counts of a feed as they are at a scrape."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed

    def collect(self) -> Iterable[Metric]:
        """Called at a scrape."""
        feed, counts = self._feed, self._feed.counts
        yield GaugeMetricFamily(
            "dispatchai_calls_live", "Calls in progress, of the whole system: take one worker's.", feed.live_calls
        )
        yield GaugeMetricFamily(
            "dispatchai_calls_final", "Finished calls in the queue, of the whole system.", feed.final_calls
        )
        prefix = "dispatchai_view_"
        yield CounterMetricFamily(prefix + "records", "Records read for the page.", counts.records)
        yield CounterMetricFamily(prefix + "skipped", "Records among them that cannot be read.", counts.skipped)
        yield CounterMetricFamily(prefix + "sessions", "Times that the topics were read anew.", counts.sessions)
        yield GaugeMetricFamily(prefix + "subscribers", "Pages that are open.", feed.subscribers)
        yield CounterMetricFamily(
            prefix + "dropped_subscribers", "Pages let go because they did not read.", counts.dropped_subscribers
        )
