"""The base class of this package's errors."""

from __future__ import annotations


class KafkaOperationError(Exception):
    """An operation on Kafka, its topics or its files failed. The message is for an operator, and names the cause."""
