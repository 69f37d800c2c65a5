"""Topics and changelogs as `topics.yaml` declares them.

Decides how the file is read and which broker configuration follows from it. `admin` compares it with a cluster.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final, Self

import yaml

from dispatchai.resources import data_path

APP_PREFIX: Final = "dispatchai-"
"""Faust app id of the app ``worker`` is ``dispatchai-worker``; changelog names begin with it."""

DELETE_SEGMENT_MS: Final = 86_400_000
"""Kafka deletes closed segments only. With a segment a day, a record is gone at most a day after its retention."""

COMPACT_SEGMENT_BYTES: Final = 4 * 1024 * 1024
"""Recovery reads the open segment in full. 1000 snapshots of 1 kB a second over 8 partitions fill 4 MiB in about the
30 s below which nothing is compacted anyway. Kafka's own smallest is 1 MiB, its default 1 GiB."""

COMPACT_DIRTY_RATIO: Final = 0.01
"""Compact once a hundredth of the log is superseded. With Kafka's default of a half, recovery may read it all twice."""

TOMBSTONE_RETENTION_MS: Final = 3_600_000
"""How long tombstones outlive compaction: a reader from the beginning is at the end long before. A day is the default,
and recovery would read a day's tombstones."""

TIMESTAMP_AHEAD_MS: Final = 2**63 - 1
"""How far in the future a record's time may lie: any time. From version 4 on Kafka refuses what is an hour ahead, and a
machine whose clock is wrong would lose all that is said to it."""

_DURATION: Final = re.compile(r"(\d+)(ms|s|m|h|d)")
UNIT_MS: Final = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_TOPIC_NAME: Final = re.compile(r"[a-zA-Z0-9._-]{1,249}")


class Topic(StrEnum):
    """The name of each topic in `topics.yaml`."""

    CALL_EVENTS = "call-events"
    AUDIO_FRAMES = "audio-frames"
    SIGNALS = "signals"
    TRANSCRIPTS = "transcripts"
    ASSESSMENTS = "assessments"
    LIVE_CALLS = "live-calls"
    DISPATCH_QUEUE = "dispatch-queue"
    DISPATCH_ACTIONS = "dispatch-actions"
    DEAD_LETTERS = "dead-letters"


class TopicsFileError(ValueError):
    """`topics.yaml` is wrong. The message names the file, the topic and the field."""


class Policy(StrEnum):
    """What happens to old records."""

    DELETE = "delete"
    COMPACT = "compact"


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """One topic as declared. `retention_ms` is set for DELETE; `segment_ms` and `min_lag_ms` for COMPACT."""

    name: str
    key: str
    schema: str | None
    policy: Policy
    retention_ms: int | None = None
    segment_ms: int | None = None
    min_lag_ms: int | None = None

    @property
    def configs(self) -> dict[str, str]:
        """The broker's configuration of the topic, by Kafka's names."""
        of_all = {"message.timestamp.after.max.ms": str(TIMESTAMP_AHEAD_MS)}
        match self.policy:
            case Policy.DELETE:
                assert self.retention_ms is not None  # noqa: S101 - the reader requires it
                return of_all | {
                    "cleanup.policy": "delete",
                    "retention.ms": str(self.retention_ms),
                    "segment.ms": str(min(DELETE_SEGMENT_MS, self.retention_ms)),
                }
            case Policy.COMPACT:
                return of_all | {
                    "cleanup.policy": "compact",
                    "segment.ms": str(self.segment_ms),
                    "segment.bytes": str(COMPACT_SEGMENT_BYTES),
                    "min.compaction.lag.ms": str(self.min_lag_ms),
                    "min.cleanable.dirty.ratio": str(COMPACT_DIRTY_RATIO),
                    "delete.retention.ms": str(TOMBSTONE_RETENTION_MS),
                }


@dataclass(frozen=True, slots=True)
class TableSpec:
    """One table of an agent as declared: its snapshots are a compacted changelog."""

    name: str
    app: str
    schema: str
    segment_ms: int
    min_lag_ms: int

    @property
    def app_id(self) -> str:
        """Faust's id of the app that owns the table."""
        return f"{APP_PREFIX}{self.app}"

    @property
    def changelog(self) -> TopicSpec:
        """The topic of the snapshots, under the name that Faust gives it."""
        return TopicSpec(
            name=f"{self.app_id}-{self.name}-changelog",
            key="as the table's",
            schema=self.schema,
            policy=Policy.COMPACT,
            segment_ms=self.segment_ms,
            min_lag_ms=self.min_lag_ms,
        )


@dataclass(frozen=True, slots=True)
class Topics:
    """All topics and tables, by name. `partitions` is the same for every topic and changelog."""

    partitions: int
    replication: int
    topics: Mapping[str, TopicSpec]
    tables: Mapping[str, TableSpec]

    @classmethod
    def load(cls, path: Path | None = None) -> Self:
        """Read `path`, by default the `topics.yaml` that ships with the program.

        Raises TopicsFileError, and OSError if the file cannot be read.
        """
        path = path or data_path("topics.yaml")
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise TopicsFileError(f"{path}: no YAML: {error}") from error
        root = _Fields(str(path), content)
        partitions = root.number("partitions", at_least=1)
        replication = root.number("replication", at_least=1)
        topics = {name: _read_topic(name, fields) for name, fields in root.sections("topics")}
        tables = {name: _read_table(name, fields) for name, fields in root.sections("tables")}
        root.finish()
        for table in tables.values():
            if table.changelog.name in topics:
                raise TopicsFileError(f"{path}: {table.changelog.name} is declared twice: as a topic and by a table")
        return cls(partitions, replication, topics, tables)

    def every_topic(self) -> tuple[TopicSpec, ...]:
        """The topics, then the tables' changelogs, in the order of the file."""
        return (*self.topics.values(), *(table.changelog for table in self.tables.values()))


class _Fields:
    """The fields of one mapping of the file: each is taken once, and what is left over is an error."""

    def __init__(self, where: str, content: object) -> None:
        if not isinstance(content, dict):
            raise TopicsFileError(f"{where}: expected fields, found {_kind(content)}")
        self._where = where
        self._left: dict[object, object] = dict(content)

    def _take(self, name: str) -> object:
        if name not in self._left:
            raise TopicsFileError(f"{self._where}: {name} is missing")
        return self._left.pop(name)

    def text(self, name: str) -> str:
        value = self._take(name)
        if not isinstance(value, str) or not value:
            raise TopicsFileError(f"{self._where}: {name} must be a text, found {_kind(value)}")
        return value

    def optional_text(self, name: str) -> str | None:
        return self.text(name) if name in self._left else None

    def number(self, name: str, *, at_least: int) -> int:
        value = self._take(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
            raise TopicsFileError(f"{self._where}: {name} must be a whole number from {at_least} up, found {value!r}")
        return value

    def duration_ms(self, name: str) -> int:
        value = self.text(name)
        match = _DURATION.fullmatch(value)
        if match is None or int(match[1]) == 0:
            raise TopicsFileError(
                f"{self._where}: {name} must be a duration such as 30d, 12h, 1m or 30s, not {value!r}"
            )
        return int(match[1]) * UNIT_MS[match[2]]

    def policy(self, name: str) -> Policy:
        value = self.text(name)
        try:
            return Policy(value)
        except ValueError:
            raise TopicsFileError(f"{self._where}: {name} must be one of {', '.join(Policy)}, not {value!r}") from None

    def sections(self, name: str) -> Iterable[tuple[str, _Fields]]:
        value = self._take(name)
        if not isinstance(value, dict):
            raise TopicsFileError(f"{self._where}: {name} must hold names with fields, found {_kind(value)}")
        for key, content in value.items():
            if not isinstance(key, str) or not _TOPIC_NAME.fullmatch(key):
                raise TopicsFileError(f"{self._where}: {name}: {key!r} cannot be the name of a topic")
            yield key, _Fields(f"{self._where}: {name}: {key}", content)

    def finish(self) -> None:
        for name in self._left:
            raise TopicsFileError(f"{self._where}: unknown field {name!r}")


def _kind(value: object) -> str:
    return "nothing" if value is None else f"{type(value).__name__} {value!r}"


def _read_topic(name: str, fields: _Fields) -> TopicSpec:
    schema, key, policy = fields.optional_text("schema"), fields.text("key"), fields.policy("policy")
    match policy:
        case Policy.DELETE:
            spec = TopicSpec(name, key, schema, policy, retention_ms=fields.duration_ms("retention"))
        case Policy.COMPACT:
            segment_ms, min_lag_ms = fields.duration_ms("segment"), fields.duration_ms("min_lag")
            spec = TopicSpec(name, key, schema, policy, segment_ms=segment_ms, min_lag_ms=min_lag_ms)
    fields.finish()
    return spec


def _read_table(name: str, fields: _Fields) -> TableSpec:
    spec = TableSpec(
        name,
        app=fields.text("app"),
        schema=fields.text("schema"),
        segment_ms=fields.duration_ms("segment"),
        min_lag_ms=fields.duration_ms("min_lag"),
    )
    fields.finish()
    return spec
