"""A few seeds of the crash test: whatever is killed or frozen, the packets are those of undisturbed processing.

`python -m tests.crash` runs more. docs/guarantees.md describes the folder of a failing seed.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash.__main__ import groups
from tests.crash.run import Options, run
from tests.support.kafka.node import KafkaUnavailableError, fetch_jars, find_java
from tests.support.left_out import leave_out

APACHE_SEEDS = (1, 2)
EMBEDDED_SEEDS = (3,)

CALLS = 6
"""Half as many calls as the command makes, because other tests use the machine too."""


@pytest.mark.parametrize("seed", EMBEDDED_SEEDS)
async def test_packets_are_those_of_undisturbed_processing_on_the_embedded_broker(seed: int, tmp_path: Path) -> None:
    outcome = await run(Options(seed, groups("all", "embedded"), False, tmp_path, CALLS))
    assert [str(problem) for problem in outcome.verdict.problems] == []
    assert len(outcome.packets) == CALLS


@pytest.mark.parametrize("seed", APACHE_SEEDS)
async def test_packets_are_those_of_undisturbed_processing_on_apache_kafka(seed: int, tmp_path: Path) -> None:
    try:
        find_java()
        fetch_jars()
    except KafkaUnavailableError as error:
        leave_out("Apache Kafka", str(error), "DISPATCHAI_REQUIRE_KAFKA")
    outcome = await run(Options(seed, groups("all", "apache"), True, tmp_path, CALLS))
    assert [str(problem) for problem in outcome.verdict.problems] == []
    assert len(outcome.packets) == CALLS
