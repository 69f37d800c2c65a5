"""The broker of the attacked gateways."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from dispatchai.kafka.connection import KafkaConnection

if TYPE_CHECKING:
    from tests.support.kafka.brokers import Brokers


@pytest.fixture
def embedded(brokers: Brokers) -> KafkaConnection:
    """The embedded broker with the topics."""
    connection = brokers.connection("embedded")
    brokers.topics(connection)
    return connection
