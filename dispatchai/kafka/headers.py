"""Numbers in the headers of records. Anybody who may write to a topic decides what its headers hold."""

from __future__ import annotations

from typing import Final

LONG_MAX: Final = 2**63 - 1
"""The largest number of Avro's and Kafka's long: no time in a record is later, in whatever unit."""


def number_in(value: bytes | None, at_most: int) -> int | None:
    """The number that the decimal digits of a header's `value` name; None if they name none from 0 to `at_most`."""
    if value is None or len(value) > len(str(at_most)) or not value.isdigit():
        return None
    number = int(value)
    return number if number <= at_most else None
