"""Topics and changelogs as `topics.yaml` declares them.

Decides what the file may contain and which broker configuration follows from it. `admin` compares it with a cluster.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, StringConstraints

from dispatchai.kafka.errors import KafkaOperationError
from dispatchai.resources import data_path
from dispatchai.yaml_model import YamlFileError, YamlModel, described, must_be_fields, read_yaml

APP_PREFIX: Final = "dispatchai-"
"""The Faust app ``worker`` has the id ``dispatchai-worker``. The names of its changelogs begin with it."""

DELETE_SEGMENT_MS: Final = 86_400_000
"""Kafka deletes only closed segments. With a segment a day a record is deleted at most a day after its retention."""

COMPACT_SEGMENT_BYTES: Final = 4 * 1024 * 1024
"""Recovery reads the open segment in full. 1000 snapshots of 1 kB a second over 8 partitions fill 4 MiB in about the
30 s for which nothing is compacted anyway. Kafka's minimum is 1 MiB, its default 1 GiB."""

COMPACT_DIRTY_RATIO: Final = 0.01
"""Compact once a hundredth of the log is superseded. With Kafka's default, a half, recovery may read twice as much."""

TOMBSTONE_RETENTION_MS: Final = 3_600_000
"""How long tombstones survive compaction: a reader from the beginning reaches the end much sooner. With the default of
a day, recovery would read a day's tombstones."""

TIMESTAMP_AHEAD_MS: Final = 2**63 - 1
"""How far a record's time may be in the future: without limit. By default Kafka 4 refuses a record an hour ahead, so a
machine with a wrong clock would lose everything that its callers say."""

MESSAGE_MAX_BYTES: Final = 1_048_588
"""Largest batch: Kafka's own default, whatever a cluster's is. Producers send no larger record
(`engine.emitter.RECORD_MAX_BYTES`), and a batch that a broker refuses ends its process."""

_EXAMPLES: Final = "30d, 12h, 1m or 30s"
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
    PACKETS = "packets"
    LIVE_CALLS = "live-calls"
    DISPATCH_QUEUE = "dispatch-queue"
    DISPATCH_ACTIONS = "dispatch-actions"
    DEAD_LETTERS = "dead-letters"


class TopicsFileError(KafkaOperationError):
    """`topics.yaml` is wrong. The message has a line for each fault: file, line, topic, field and what to write."""


class Policy(StrEnum):
    """What happens to old records."""

    DELETE = "delete"
    COMPACT = "compact"


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """One declared topic. `retention_ms` is set for DELETE; `segment_ms` and `min_lag_ms` for COMPACT."""

    name: str
    key: str
    schema: str | None
    policy: Policy
    retention_ms: int | None = None
    segment_ms: int | None = None
    min_lag_ms: int | None = None

    @property
    def configs(self) -> dict[str, str]:
        """The topic's configuration on the broker, by Kafka's names."""
        of_all = {
            "message.timestamp.after.max.ms": str(TIMESTAMP_AHEAD_MS),
            "max.message.bytes": str(MESSAGE_MAX_BYTES),
        }
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
    """One declared table of an agent. Its snapshots are a compacted changelog."""

    name: str
    app: str
    schema: str
    segment_ms: int
    min_lag_ms: int

    @property
    def app_id(self) -> str:
        """The Faust id of the app that owns the table."""
        return f"{APP_PREFIX}{self.app}"

    @property
    def changelog(self) -> TopicSpec:
        """The topic of the snapshots, with the name that Faust gives it."""
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

        Raises TopicsFileError, also if the file cannot be read.
        """
        path = path or data_path("topics.yaml")
        try:
            raw = path.read_bytes()
        except OSError as error:
            raise TopicsFileError(f"{path}: cannot be read: {error.strerror}") from error
        try:
            file = read_yaml(raw, _TopicsFile, path)
            topics = {name: topic.spec(name) for name, topic in file.content.topics.items()}
            tables = {name: table.spec(name) for name, table in file.content.tables.items()}
            for name, table in tables.items():
                if table.changelog.name in topics:
                    raise file.error(
                        ("topics", table.changelog.name),
                        f"declared twice: it is the changelog of the table {name}, which creates it",
                    )
        except YamlFileError as error:
            raise TopicsFileError(str(error)) from error
        return cls(file.content.partitions, file.content.replication, topics, tables)

    def every_topic(self) -> tuple[TopicSpec, ...]:
        """The topics, then the tables' changelogs, in the order of the file."""
        return (*self.topics.values(), *(table.changelog for table in self.tables.values()))


# -- the file


def _duration_ms(value: object) -> int:
    if not isinstance(value, str):
        raise ValueError(f"must be a text, found {described(value)}: write a duration such as {_EXAMPLES}")
    match = _DURATION.fullmatch(value)
    if match is None or int(match[1]) == 0:
        raise ValueError(f"must be a duration such as {_EXAMPLES}, not {value!r}")
    return int(match[1]) * UNIT_MS[match[2]]


def _topic_name(name: str) -> str:
    if not _TOPIC_NAME.fullmatch(name):
        raise ValueError(f"{name!r} cannot be the name of a topic: use letters, digits, '.', '_' and '-'")
    return name


_Text = Annotated[str, StringConstraints(min_length=1)]
_Count = Annotated[int, Field(ge=1)]
_DurationMs = Annotated[int, BeforeValidator(_duration_ms)]
_Name = Annotated[str, AfterValidator(_topic_name)]


class _DeletedTopic(YamlModel):
    key: _Text
    schema_name: _Text = Field("", alias="schema")
    policy: Literal["delete"]
    retention: _DurationMs

    def spec(self, name: str) -> TopicSpec:
        return TopicSpec(name, self.key, self.schema_name or None, Policy.DELETE, retention_ms=self.retention)


class _CompactedTopic(YamlModel):
    key: _Text
    schema_name: _Text = Field("", alias="schema")
    policy: Literal["compact"]
    segment: _DurationMs
    min_lag: _DurationMs

    def spec(self, name: str) -> TopicSpec:
        return TopicSpec(
            name, self.key, self.schema_name or None, Policy.COMPACT, segment_ms=self.segment, min_lag_ms=self.min_lag
        )


_Topic = Annotated[_DeletedTopic | _CompactedTopic, Discriminator("policy"), BeforeValidator(must_be_fields)]


class _Table(YamlModel):
    app: _Text
    schema_name: _Text = Field(alias="schema")
    segment: _DurationMs
    min_lag: _DurationMs

    def spec(self, name: str) -> TableSpec:
        return TableSpec(name, self.app, self.schema_name, segment_ms=self.segment, min_lag_ms=self.min_lag)


class _TopicsFile(YamlModel):
    partitions: _Count
    replication: _Count
    topics: dict[_Name, _Topic]
    tables: dict[_Name, _Table]
