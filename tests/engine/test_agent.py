"""The loop around a step leaves the event loop to others, and an agent that fails is seen at once."""

from __future__ import annotations

from pathlib import Path

from structlog.testing import capture_logs

from dispatchai.engine import agent
from dispatchai.engine.fetch import Batch
from dispatchai.kafka.connection import KafkaConnection
from tests.engine.test_app import make_app, make_states, make_topics, produce, running, until


async def test_an_agent_that_fails_outside_its_step_makes_the_application_fail_at_once(
    broker: KafkaConnection, tmp_path: Path
) -> None:
    names = await make_topics(broker)
    app = make_app(broker, names, tmp_path)
    make_states(app)

    async def process(batch: Batch) -> None:
        raise OverflowError("too large")

    agent.run_batches(app, "sums", [names.source], process)
    async with running(app):
        await until(lambda: app.lease.open)
        assert app.checks["running"]()
        with capture_logs() as logs:
            await produce(broker, names.source, [("call", b"1")])
            await until(lambda: app.failure.has_failed)
    assert not app.checks["running"]()
    assert [(line["event"], line.get("agent")) for line in logs if line["log_level"] == "error"][:2] == [
        ("agent_failed", "sums"),
        ("application_failed", None),
    ]
