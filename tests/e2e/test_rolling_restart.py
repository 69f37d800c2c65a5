"""Every process is restarted one by one under live calls: no call is cut, and each packet says what it misses."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.restarts import PROCESSES
from bench.rolling_restart import Plan, run
from tests.support.kafka.measured import broker
from tests.support.kafka.node import KafkaUnavailableError, fetch_jars, find_java
from tests.support.left_out import leave_out

CALLS = 6


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kill", [None, "worker-2"])
async def test_a_rolling_restart_cuts_no_call_and_only_a_kill_counts_as_an_unclean_start(
    kill: str | None, tmp_path: Path
) -> None:
    try:
        find_java()
        fetch_jars()
    except KafkaUnavailableError as error:
        leave_out("Apache Kafka", str(error), "DISPATCHAI_REQUIRE_KAFKA")
    async with broker(apache=True) as kafka:
        outcome = await run(kafka.connection, tmp_path, Plan(CALLS, ramp_s=1.0, pause_s=1.0, kill=kill))
    assert list(outcome.problems()) == []
    assert [restart.process for restart in outcome.restarts] == list(PROCESSES)
    assert [restart.exit_code for restart in outcome.restarts if not restart.killed] == [0] * (6 - bool(kill))
    assert outcome.unclean == ({} if kill is None else {kill: 1.0})
    assert len(outcome.queue) == CALLS
    assert outcome.cut_off >= CALLS, "each call's gateway was restarted, so each lost a socket"
