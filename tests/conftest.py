"""What all tests share: the two brokers that the product must work on, and the project's topics on them.

The embedded broker and a real Apache Kafka (fetched by Maven, started without Docker) each start when a test first
asks for them and stop with the session; killed with pytest, they die with it.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any, Final

import hypothesis
import pytest
import structlog

from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.topics import Topics
from dispatchai.process.logs import QUIET
from dispatchai.settings import Settings
from tests.support.kafka.brokers import Background, Brokers
from tests.support.kafka.node import KafkaUnavailableError
from tests.support.left_out import LEFT_OUT, leave_out

APACHE_KAFKA: Final = "apache-kafka"
"""The parameter of a test that runs on Apache Kafka."""

# Generated examples take as long as the machine's other work lets them: no deadline on one. The same ones each time
# in CI, so that a failure there can be repeated.
hypothesis.settings.register_profile("project", deadline=None, derandomize=bool(os.environ.get("CI")))
hypothesis.settings.load_profile("project")


def pytest_configure() -> None:
    """Tests see the defaults: neither the caller's environment nor a `.env` file reaches the settings."""
    for name in Settings.model_fields:
        os.environ.pop(name.upper(), None)
    Settings.model_config["env_file"] = None
    # A logger that a command's own logging lets be cached writes to that logging for the rest of the session, and what
    # it writes cannot be captured.
    structlog.configure = functools.partial(_configure_uncached, structlog.configure)


def _configure_uncached(configure: Callable[..., None], **options: Any) -> None:
    configure(**{**options, "cache_logger_on_first_use": False})


LONG: Final = (
    "bench/tests/test_runs.py",
    "tests/agents/test_poison.py",
    "tests/agents/test_queue_purge.py",
    "tests/attacks/",
    "tests/cli/doctor/",
    "tests/cli/test_call.py",
    "tests/cli/test_dead_letters.py",
    "tests/cli/test_dev.py",
    "tests/cli/test_main.py",
    "tests/cli/test_topics_upgrade.py",
    "tests/crash/test_crash.py",
    "tests/deploy/",
    "tests/e2e/",
    "tests/engine/test_departed_leader.py",
    "tests/kafka/test_dead_letters.py",
    "tests/speech/test_moonshine.py",
    "tests/stranger/",
)
"""Where tests start processes of the program, or a model, and take long. A list, so that it can be read."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that `make test` leaves to `make test-all`."""
    for item in items:
        chosen = item.callspec.params.get("broker") if hasattr(item, "callspec") else None
        if "secured_kafka" in getattr(item, "fixturenames", ()) or chosen == APACHE_KAFKA:
            item.add_marker("apache_kafka")
        if item.nodeid.startswith(LONG):
            item.add_marker("long")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say in the summary what could not be tested on this machine. Tests may have run in other processes than this."""
    reasons = {report.longrepr[2] for report in terminalreporter.stats.get("skipped", [])}
    for reason in sorted(reason for reason in reasons if LEFT_OUT in reason):
        terminalreporter.write_line(reason.removeprefix("Skipped: "), yellow=True)


@pytest.fixture(autouse=True)
def _logging_restored() -> Iterator[None]:
    """The logging of the tests, put back after each: a command that runs in a test sets up its own."""
    root, structured = logging.getLogger(), structlog.get_config()
    handlers, level = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in QUIET}
    yield
    root.handlers, root.level = handlers, level
    for name, before in levels.items():
        logging.getLogger(name).setLevel(before)
    structlog.configure(**structured)
    structlog.contextvars.unbind_contextvars("process")


@pytest.fixture(scope="session")
def brokers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Brokers]:
    """The brokers of this session."""
    background = Background()
    brokers = Brokers(background, tmp_path_factory.mktemp("kafka"))
    try:
        yield brokers
    finally:
        brokers.stop()
        background.close()


@pytest.fixture(scope="session", params=["embedded", APACHE_KAFKA])
def broker(request: pytest.FixtureRequest, brokers: Brokers) -> KafkaConnection:
    """A running broker: the test runs once on each. What other tests wrote is on it."""
    try:
        return brokers.connection(request.param)
    except KafkaUnavailableError as error:
        leave_out("Apache Kafka", str(error), "DISPATCHAI_REQUIRE_KAFKA")


@pytest.fixture
def embedded(brokers: Brokers) -> KafkaConnection:
    """The embedded broker with the topics, for tests that do not depend on the broker."""
    connection = brokers.connection("embedded")
    brokers.topics(connection)
    return connection


@pytest.fixture
def secured_kafka(brokers: Brokers) -> KafkaConnection:
    """Apache Kafka by a listener that asks for a certificate, a name and a password."""
    try:
        return brokers.secured()
    except KafkaUnavailableError as error:
        leave_out("Apache Kafka", str(error), "DISPATCHAI_REQUIRE_KAFKA")


@pytest.fixture
def topics(broker: KafkaConnection, brokers: Brokers) -> Topics:
    """The project's topics, present on `broker`. They are shared: a test uses call ids of its own."""
    return brokers.topics(broker)
