"""`dispatchai topics`: what it prints, the report of `apply` and the table of `show`.

`kafka.admin` compares the cluster with `topics.yaml`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from dispatchai.kafka.admin import Report, TopicState
from dispatchai.kafka.packet_history import Copied
from dispatchai.kafka.topics import UNIT_MS, Topic

NOT_REPORTED: Final = "not reported by this broker"


def _readable(what: str, value: str) -> str:
    """A configuration value for people: milliseconds also as a duration."""
    if not what.endswith(".ms") or not value.lstrip("-").isdigit():
        return value
    return f"{value} ({_duration(int(value))})"


def _duration(milliseconds: int) -> str:
    if milliseconds < 0:
        return "for ever"
    if milliseconds == 0:
        return "0s"
    unit = next(unit for unit in ("d", "h", "m", "s", "ms") if milliseconds % UNIT_MS[unit] == 0)
    return f"{milliseconds // UNIT_MS[unit]}{unit}"


def render_report(report: Report) -> str:
    """The report as lines for a terminal, without a final newline."""
    lines = [f"created  {name}" for name in report.created]
    lines += [
        f"drift    {item.topic}: {item.what} is {_readable(item.what, item.found)}, "
        f"declared {_readable(item.what, item.declared)}"
        for item in report.drift
    ]
    lines += [f"unknown  {item.topic}: {', '.join(item.names)}: {NOT_REPORTED}" for item in report.not_reported]
    drifted = len({item.topic for item in report.drift})
    as_declared = len(report.present) - drifted
    lines.append(f"{len(report.created)} created, {as_declared} present as declared, {drifted} differ (not changed)")
    return "\n".join(lines)


def render_copied(copied: Copied) -> str:
    """The result of a copy to the topic `packets` as a line for a terminal."""
    return f"{copied.copied} packets copied from {Topic.DISPATCH_QUEUE} to {Topic.PACKETS}, {copied.present} were there"


def render_show(states: Sequence[TopicState]) -> str:
    """The topics as a table for a terminal, without a final newline."""

    def value_of(state: TopicState, name: str) -> str:
        if name not in state.configs:
            return "?"
        value = state.configs[name]
        return _duration(int(value)) if name.endswith(".ms") else value

    rows = [("TOPIC", "PARTITIONS", "COPIES", "POLICY", "RETENTION", "SEGMENT", "END OFFSETS", "RECORDS AT MOST")]
    unreported = False
    for state in states:
        if not state.exists:
            rows.append((state.name, "missing", "", "", "", "", "", ""))
            continue
        policy = value_of(state, "cleanup.policy")
        retention = "" if policy == "compact" else value_of(state, "retention.ms")
        segment = value_of(state, "segment.ms")
        unreported = unreported or "?" in (policy, retention, segment)
        ends = " ".join(str(offset) for offset in state.end_offsets)
        records = sum(state.end_offsets) - sum(state.start_offsets)
        rows.append(
            (state.name, str(state.partitions), str(state.replication), policy, retention, segment, ends, str(records))
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if unreported:
        lines.append(f"? {NOT_REPORTED}")
    if refused := next((state for state in states if state.configs_refused), None):
        lines.append(f"{refused.name}: {refused.configs_refused}: this Kafka user needs the right to DescribeConfigs")
    return "\n".join(lines)
