"""What is counted in bulk is what would be counted one by one; labels and memory are bounded."""

from __future__ import annotations

import time

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from dispatchai.engine.metrics import (
    JOURNEYS_MAX,
    LABEL_VALUES_MAX,
    OTHER,
    EngineMetrics,
    Journey,
)
from dispatchai.process.metrics import LATENCY_BUCKETS_S, Histogram

BUDGET_S = (0.025, 0.04, 0.06, 0.1, 0.15, 0.2, 0.25, 0.3, 1.0)
"""The limits of docs/performance.md."""


def made(registry: CollectorRegistry) -> Histogram:
    return Histogram("latency", "Latency.", buckets=LATENCY_BUCKETS_S, registry=registry)


@given(st.lists(st.one_of(st.sampled_from(LATENCY_BUCKETS_S), st.floats(0.0, 1e6)), max_size=200))
def test_many_values_at_once_count_as_one_by_one(values: list[float]) -> None:
    one_by_one, at_once = CollectorRegistry(), CollectorRegistry()
    single = made(one_by_one)
    for value in values:
        single.observe(value)
    made(at_once).observe_many(np.array(values, dtype=np.float64))
    for edge in (*map(str, LATENCY_BUCKETS_S), "+Inf"):
        expected = one_by_one.get_sample_value("latency_bucket", {"le": edge})
        assert expected is not None
        assert at_once.get_sample_value("latency_bucket", {"le": edge}) == expected
    total = at_once.get_sample_value("latency_sum")
    assert total is not None
    assert np.isclose(total, sum(values))


def test_every_limit_of_the_budget_is_an_edge() -> None:
    assert set(BUDGET_S) <= set(LATENCY_BUCKETS_S)


def test_a_journey_is_measured_once_from_its_first_moment() -> None:
    registry = CollectorRegistry()
    journey = Journey(made(registry))
    now_us = time.time_ns() // 1000
    journey.begin("call", now_us - 2_000_000)
    journey.begin("call", now_us)
    journey.end("call")
    journey.end("call")
    journey.end("unseen")
    assert registry.get_sample_value("latency_count") == 1
    total = registry.get_sample_value("latency_sum")
    assert total is not None
    assert total >= 2.0


def test_a_clock_that_is_ahead_makes_no_latency_below_nothing() -> None:
    registry = CollectorRegistry()
    journey = Journey(made(registry))
    journey.begin("call", time.time_ns() // 1000 + 60_000_000)
    journey.end("call")
    assert registry.get_sample_value("latency_sum") == 0.0


def test_journeys_that_never_end_do_not_fill_the_memory() -> None:
    registry = CollectorRegistry()
    journey = Journey(made(registry))
    for number in range(JOURNEYS_MAX + 5):
        journey.begin(f"call-{number}", 0)
    journey.end("call-0")
    assert registry.get_sample_value("latency_count") == 0
    journey.end(f"call-{JOURNEYS_MAX}")
    assert registry.get_sample_value("latency_count") == 1


def test_errors_of_any_number_of_names_make_a_bounded_number_of_series() -> None:
    metrics = EngineMetrics()
    for number in range(LABEL_VALUES_MAX + 10):
        metrics.dead_letter("triage", type(f"Error{number}", (Exception,), {})())
    samples = [
        sample
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == "dispatchai_dead_letters_total"
    ]
    assert len(samples) == LABEL_VALUES_MAX + 1
    assert {sample.labels["error"]: sample.value for sample in samples}[OTHER] == 10
