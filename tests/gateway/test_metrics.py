"""Prometheus is shown everything that the gateway counts, including the 0 before the first of each kind."""

from __future__ import annotations

import dataclasses

from prometheus_client import CollectorRegistry

from dispatchai.gateway.media_stream import Stream
from dispatchai.gateway.metrics import PREFIX, GatewayCollector, GatewayMetrics, WebhookOutcome
from dispatchai.records import Track
from dispatchai.telnyx.media_messages import Media, MediaFormat


def shown(collector: GatewayCollector) -> dict[tuple[str, tuple[str, ...]], float]:
    registry = CollectorRegistry()
    registry.register(collector)
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in registry.collect()
        for sample in family.samples
    }


def test_every_count_is_shown() -> None:
    names = {name.removesuffix("_total") for name, _ in shown(GatewayCollector(GatewayMetrics()))}
    assert names == {PREFIX + item.name for item in dataclasses.fields(GatewayMetrics)}


def test_counts_are_shown_by_kind() -> None:
    metrics = GatewayMetrics(frames=7, sockets_open=3)
    metrics.webhooks[WebhookOutcome.STORED] += 2
    samples = shown(GatewayCollector(metrics))
    assert samples["dispatchai_gateway_frames_total", ()] == 7
    assert samples["dispatchai_gateway_sockets_open", ()] == 3
    assert samples["dispatchai_gateway_webhooks_total", ("stored",)] == 2
    assert samples["dispatchai_gateway_webhooks_total", ("unavailable",)] == 0


def test_a_gap_is_counted_when_it_is_given_up() -> None:
    metrics = GatewayMetrics()
    stream = Stream("S", MediaFormat("PCMU", 8000, 1), lambda record, at, never_drop: None, metrics, 0)
    for chunk in (1, 2, 5, 7):
        stream.receive(Media(Track.INBOUND, chunk, bytes(160)), 0)
    assert metrics.frames_missing == 0
    stream.end("stop", 0)
    assert metrics.frames_missing == 3
    assert metrics.frames == 4
