"""Topics and changelogs as `topics.yaml` declares them, and as a cluster has them.

Decides how the declaration is read, which broker configuration follows from it, what is created and what counts as
drift. Changes nothing that exists. Leaves to others what the records are and who writes them.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final, Self

import yaml
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError, TopicAlreadyExistsError, for_code

from dispatchai.kafka.connection import KafkaConnection
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

_VISIBLE_TIMEOUT_S: Final = 30.0
"""How long a created topic may take until every partition has a leader."""

_VISIBLE_INTERVAL_S: Final = 0.05
"""Pause between two looks at the metadata: the protocol has no notice of it."""

NOT_REPORTED: Final = "not reported by this broker"

_DURATION: Final = re.compile(r"(\d+)(ms|s|m|h|d)")
_UNIT_MS: Final = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_TOPIC_NAME: Final = re.compile(r"[a-zA-Z0-9._-]{1,249}")


class TopicsFileError(ValueError):
    """`topics.yaml` is wrong. The message names the file, the topic and the field."""


class TopicsError(RuntimeError):
    """The cluster refused a topic or did not bring it up. The message names the topic and the reason."""


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
        return int(match[1]) * _UNIT_MS[match[2]]

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


@dataclass(frozen=True, slots=True)
class Drift:
    """One thing of a topic that is not as declared. `what` is partitions, replication or a Kafka configuration name."""

    topic: str
    what: str
    declared: str
    found: str


@dataclass(frozen=True, slots=True)
class NotReported:
    """Configuration of a topic that the broker does not tell, so that drift in it cannot be seen."""

    topic: str
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """What `apply` did and found."""

    created: tuple[str, ...]
    present: tuple[str, ...]
    drift: tuple[Drift, ...]
    not_reported: tuple[NotReported, ...]

    @property
    def exit_code(self) -> int:
        """1 if something is not as declared, else 0."""
        return 1 if self.drift else 0


@dataclass(frozen=True, slots=True)
class TopicState:
    """One declared topic as the cluster has it.

    `partitions` is 0 when it does not exist. `configs` holds what the broker tells of `TopicSpec.configs`.
    `start_offsets` and `end_offsets` are by partition; their differences bound the number of records (a compacted
    topic holds fewer).
    """

    name: str
    partitions: int
    replication: int
    configs: Mapping[str, str] = field(default_factory=dict)
    start_offsets: tuple[int, ...] = ()
    end_offsets: tuple[int, ...] = ()

    @property
    def exists(self) -> bool:
        """Whether the cluster has the topic."""
        return self.partitions > 0


@dataclass(frozen=True, slots=True)
class _Found:
    """Metadata of one topic: the number of copies of each partition, and whether each has a leader."""

    copies: tuple[int, ...]
    led: bool


async def apply(connection: KafkaConnection, topics: Topics, replication: int | None = None) -> Report:
    """Create what is missing and report what is not as declared, without touching it.

    `replication` overrides that of the file. Returns when every partition of what was created has a leader. Safe to
    run by several processes at once. Raises KafkaError if the cluster cannot be reached, TopicsError if it refuses.
    """
    copies = topics.replication if replication is None else replication
    specs = topics.every_topic()
    async with _admin(connection) as admin:
        before = await _metadata(admin)
        created = await _create(admin, [spec for spec in specs if spec.name not in before], topics.partitions, copies)
        found = await _wait_for_leaders(admin, [spec.name for spec in specs])
        configs = await _configs(admin, specs)
    drift: list[Drift] = []
    not_reported: list[NotReported] = []
    for spec in specs:
        here, told = found[spec.name], configs[spec.name]
        drift.extend(_drift(spec, topics.partitions, copies, here.copies, told))
        if untold := tuple(name for name in spec.configs if name not in told):
            not_reported.append(NotReported(spec.name, untold))
    present = tuple(spec.name for spec in specs if spec.name not in created)
    return Report(created, present, tuple(drift), tuple(not_reported))


async def show(connection: KafkaConnection, topics: Topics) -> tuple[TopicState, ...]:
    """What the cluster has of each declared topic and changelog, in the order of the file. Creates nothing.

    Raises KafkaError if the cluster cannot be reached.
    """
    specs = topics.every_topic()
    async with _admin(connection) as admin:
        found = await _metadata(admin)
        there = [spec for spec in specs if spec.name in found]
        configs = await _configs(admin, there)
    partitions = [TopicPartition(spec.name, number) for spec in there for number in range(len(found[spec.name].copies))]
    starts, ends = await _offsets(connection, partitions)

    def state(spec: TopicSpec) -> TopicState:
        if spec.name not in found:
            return TopicState(spec.name, partitions=0, replication=0)
        copies = found[spec.name].copies
        own = [TopicPartition(spec.name, number) for number in range(len(copies))]
        return TopicState(
            name=spec.name,
            partitions=len(copies),
            replication=min(copies),
            configs=configs[spec.name],
            start_offsets=tuple(starts[partition] for partition in own),
            end_offsets=tuple(ends[partition] for partition in own),
        )

    return tuple(state(spec) for spec in specs)


def drift_of(topics: Topics, states: Iterable[TopicState], replication: int | None = None) -> tuple[Drift, ...]:
    """What is not as declared in the topics that exist, as `apply` reports it. `replication` overrides the file's."""
    copies = topics.replication if replication is None else replication
    specs = {spec.name: spec for spec in topics.every_topic()}
    return tuple(
        item
        for state in states
        if state.exists
        for item in _drift(
            specs[state.name], topics.partitions, copies, (state.replication,) * state.partitions, state.configs
        )
    )


def _drift(
    spec: TopicSpec, partitions: int, copies: int, found: tuple[int, ...], told: Mapping[str, str]
) -> Iterable[Drift]:
    """Drift of one topic: `found` is the number of copies of each of its partitions, `told` its configuration."""
    if len(found) != partitions:
        yield Drift(spec.name, "partitions", str(partitions), str(len(found)))
    if set(found) != {copies}:
        yield Drift(spec.name, "replication", str(copies), _range(found))
    for name, declared in spec.configs.items():
        if name in told and not _equal(told[name], declared):
            yield Drift(spec.name, name, declared, told[name])


@asynccontextmanager
async def _admin(connection: KafkaConnection) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(**connection.client_options())
    try:
        await admin.start()
        yield admin
    finally:
        await admin.close()


async def _metadata(admin: AIOKafkaAdminClient) -> dict[str, _Found]:
    # All topics are asked for, never one by name: a broker with auto.create.topics.enable would create it.
    return {
        topic["topic"]: _Found(
            copies=tuple(len(partition["replicas"]) for partition in topic["partitions"]),
            led=all(partition["leader"] >= 0 and not partition["error_code"] for partition in topic["partitions"]),
        )
        for topic in await admin.describe_topics()
        if topic["partitions"] and not topic["error_code"]
    }


async def _create(
    admin: AIOKafkaAdminClient, missing: list[TopicSpec], partitions: int, copies: int
) -> tuple[str, ...]:
    if not missing:
        return ()
    response = await admin.create_topics(
        [NewTopic(spec.name, partitions, copies, topic_configs=spec.configs) for spec in missing]
    )
    created = []
    for name, code, message in response.topic_errors:
        match for_code(code):
            case error if error is TopicAlreadyExistsError:
                pass  # another process was quicker: it is looked at like any that was there
            case _ if code == 0:
                created.append(name)
            case error:
                raise TopicsError(f"{name}: the cluster refuses to create it: {message or error.__name__}")
    return tuple(created)


async def _wait_for_leaders(admin: AIOKafkaAdminClient, names: list[str]) -> dict[str, _Found]:
    waiting: list[str] = names
    try:
        async with asyncio.timeout(_VISIBLE_TIMEOUT_S):
            while True:
                found = await _metadata(admin)
                waiting = [name for name in names if name not in found or not found[name].led]
                if not waiting:
                    return found
                await asyncio.sleep(_VISIBLE_INTERVAL_S)
    except TimeoutError:
        raise TopicsError(f"{', '.join(waiting)}: no leader after {_VISIBLE_TIMEOUT_S:g} s") from None


async def _configs(admin: AIOKafkaAdminClient, specs: Iterable[TopicSpec]) -> dict[str, dict[str, str]]:
    """What the broker tells of each topic's declared configuration, by topic."""
    wanted = {spec.name: spec.configs for spec in specs}
    told: dict[str, dict[str, str]] = {name: {} for name in wanted}
    if not wanted:
        return told
    # No names of configurations are given, which asks for all: Tansu closes the connection when there are some.
    resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in wanted]
    for response in await admin.describe_configs(resources):
        for code, message, _kind_of_resource, name, entries in response.resources:
            if code:
                raise TopicsError(f"{name}: its configuration cannot be read: {message or for_code(code).__name__}")
            told[name] = {entry[0]: entry[1] for entry in entries if entry[0] in wanted[name] and entry[1] is not None}
    return told


async def _offsets(
    connection: KafkaConnection, partitions: list[TopicPartition]
) -> tuple[dict[TopicPartition, int], dict[TopicPartition, int]]:
    if not partitions:
        return {}, {}
    consumer = AIOKafkaConsumer(**connection.client_options(), enable_auto_commit=False)
    try:
        await consumer.start()
        starts: dict[TopicPartition, int] = await consumer.beginning_offsets(partitions)
        ends: dict[TopicPartition, int] = await consumer.end_offsets(partitions)
    finally:
        await consumer.stop()
    return starts, ends


def _equal(found: str, declared: str) -> bool:
    """Whether two configuration values mean the same: numbers by value, lists in any order."""
    try:
        return float(found) == float(declared)
    except ValueError:
        return sorted(found.replace(" ", "").split(",")) == sorted(declared.split(","))


def _range(copies: tuple[int, ...]) -> str:
    low, high = min(copies), max(copies)
    return str(low) if low == high else f"{low} to {high}"


def _readable(what: str, value: str) -> str:
    """A configuration value for people: milliseconds with their duration."""
    if not what.endswith(".ms") or not value.lstrip("-").isdigit():
        return value
    return f"{value} ({_duration(int(value))})"


def _duration(milliseconds: int) -> str:
    if milliseconds < 0:
        return "for ever"
    if milliseconds == 0:
        return "0s"
    unit = next(unit for unit in ("d", "h", "m", "s", "ms") if milliseconds % _UNIT_MS[unit] == 0)
    return f"{milliseconds // _UNIT_MS[unit]}{unit}"


def render_report(report: Report) -> str:
    """The report as lines for a terminal, without a newline at the end."""
    lines = [f"created  {name}" for name in report.created]
    lines += [
        f"drift    {item.topic}: {item.what} is {_readable(item.what, item.found)}, "
        f"declared {_readable(item.what, item.declared)}"
        for item in report.drift
    ]
    lines += [f"unknown  {item.topic}: {', '.join(item.names)}: {NOT_REPORTED}" for item in report.not_reported]
    drifted = len({item.topic for item in report.drift})
    there = len(report.present) - drifted
    lines.append(f"{len(report.created)} created, {there} were there as declared, {drifted} drifted (left as they are)")
    return "\n".join(lines)


def render_show(states: Iterable[TopicState]) -> str:
    """The topics as a table for a terminal, without a newline at the end."""

    def told(state: TopicState, name: str) -> str:
        if name not in state.configs:
            return "?"
        value = state.configs[name]
        return _duration(int(value)) if name.endswith(".ms") else value

    rows = [("TOPIC", "PARTITIONS", "COPIES", "POLICY", "RETENTION", "SEGMENT", "END OFFSETS", "RECORDS AT MOST")]
    untold = False
    for state in states:
        if not state.exists:
            rows.append((state.name, "missing", "", "", "", "", "", ""))
            continue
        policy = told(state, "cleanup.policy")
        retention = "" if policy == "compact" else told(state, "retention.ms")
        segment = told(state, "segment.ms")
        untold = untold or "?" in (policy, retention, segment)
        ends = " ".join(str(offset) for offset in state.end_offsets)
        records = sum(state.end_offsets) - sum(state.start_offsets)
        rows.append(
            (state.name, str(state.partitions), str(state.replication), policy, retention, segment, ends, str(records))
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if untold:
        lines.append(f"? {NOT_REPORTED}")
    return "\n".join(lines)


__all__ = [
    "Drift",
    "KafkaError",
    "NotReported",
    "Policy",
    "Report",
    "TableSpec",
    "TopicSpec",
    "TopicState",
    "Topics",
    "TopicsError",
    "TopicsFileError",
    "apply",
    "drift_of",
    "render_report",
    "render_show",
    "show",
]
