"""What every process counts, for Prometheus: its resources, the latency of its stages, the delay of its event loop.

Decides names, labels and buckets, and how `/metrics` is answered. Other parts of a process register their own metrics
at `ProcessMetrics.registry`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

import numpy as np
import numpy.typing as npt
import prometheus_client
from aiohttp import web
from prometheus_client import CollectorRegistry, Gauge, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.aiohttp import make_aiohttp_handler
from prometheus_client.core import GaugeMetricFamily, Metric

from dispatchai import __version__

# Without this there is a second series beside each counter, which the text format shows as a gauge of its own.
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]

PATH: Final = "/metrics"

LATENCY_BUCKETS_S: Final = (
    *(0.005, 0.01, 0.025, 0.04, 0.06, 0.1, 0.15, 0.2, 0.25, 0.3, 0.5),
    *(1.0, 2.0, 5.0, 10.0, 30.0, 60.0),
)
"""Each limit of the speed budget (docs/performance.md) is an edge, so that the share within it is exact: 25, 40, 60,
100, 150, 200, 250, 300 ms and 1 s. Above them come the limits of recovery."""

DELAY_BUCKETS_S: Final = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)


class Histogram(prometheus_client.Histogram):
    """A histogram that observes many values at once, at the cost of one."""

    def observe_many(self, values: npt.NDArray[np.float64]) -> None:
        """Count each of `values`, shape (n,)."""
        counts = np.bincount(np.searchsorted(self._upper_bounds, values), minlength=len(self._upper_bounds))
        for bucket, count in zip(self._buckets, counts.tolist(), strict=True):
            if count:
                bucket.inc(count)
        self._sum.inc(float(values.sum()))


class ProcessMetrics:
    """The metrics of every process. `registry` is what `/metrics` shows."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        prometheus_client.Info("dispatchai_build", "What runs here.", registry=self.registry).info(
            {"version": __version__}
        )
        self._stages = Histogram(
            "dispatchai_stage_seconds",
            "Latency of a stage of a call, by the wall clocks of the writers of its first and last record.",
            ["stage"],
            buckets=LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        self.loop_delay = Histogram(
            "dispatchai_loop_delay_seconds",
            "How long a callback waited for its turn in the event loop; measured once a second.",
            buckets=DELAY_BUCKETS_S,
            registry=self.registry,
        )
        self._show = make_aiohttp_handler(self.registry, disable_compression=True)
        self.kafka_reachable = Gauge(
            "dispatchai_kafka_reachable",
            "Whether Kafka answered the last request (1) or not (0).",
            registry=self.registry,
        )

    def stage(self, name: str) -> Histogram:
        """The latency of the stage `name`, in seconds. Get it once and keep it."""
        stage: Histogram = self._stages.labels(name)
        return stage

    def checks(self, checks: Mapping[str, Callable[[], bool]]) -> None:
        """Show the conditions of `/health/ready`, by name."""
        self.registry.register(_Checks(checks))

    async def show(self, request: web.Request) -> web.StreamResponse:
        """Answer `GET /metrics` in the format that the request accepts. Guard it as the health pages are guarded."""
        return await self._show(request)


class _Checks:
    """The conditions of readiness as 0 and 1."""

    def __init__(self, checks: Mapping[str, Callable[[], bool]]) -> None:
        self._checks = checks

    def collect(self) -> Iterable[Metric]:
        """Called by the registry at a scrape."""
        family = GaugeMetricFamily(
            "dispatchai_ready", "Whether a condition of /health/ready holds (1) or not (0).", labels=["check"]
        )
        for name, check in self._checks.items():
            family.add_metric([name], float(check()))
        yield family
