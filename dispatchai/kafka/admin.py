"""Creates the declared topics on a cluster and reports what differs from the declaration.

Changes nothing that exists. `topics` decides what is declared.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import TopicAlreadyExistsError, for_code

from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.errors import KafkaOperationError
from dispatchai.kafka.reading import current_ends, open_reader
from dispatchai.kafka.topics import Topics, TopicSpec

_VISIBLE_TIMEOUT_S: Final = 30.0
"""How long a created topic may take until every partition has a leader."""

_VISIBLE_INTERVAL_S: Final = 0.05
"""Pause between two requests for metadata: the protocol does not announce changes."""


class TopicsError(KafkaOperationError):
    """The cluster refused a topic, or gave it no leader. The message names the topic and the reason."""


@dataclass(frozen=True, slots=True)
class Drift:
    """One property of a topic that is not as declared: `what` is partitions, replication or a Kafka configuration."""

    topic: str
    what: str
    declared: str
    found: str


@dataclass(frozen=True, slots=True)
class NotReported:
    """Configuration of a topic that the broker does not report, so that drift in it cannot be found."""

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

    @property
    def splits_calls(self) -> bool:
        """Whether a topic has a wrong number of partitions: a call's partition would differ between topics."""
        return splits_calls(self.drift)


@dataclass(frozen=True, slots=True)
class TopicState:
    """One declared topic as the cluster has it.

    `partitions` is 0 when it does not exist. `configs` holds what the broker reports of `TopicSpec.configs`;
    `configs_refused` is why it reports nothing, such as a missing right to DescribeConfigs, or empty. `start_offsets`
    and `end_offsets` are by partition; their differences bound the number of records (a compacted topic holds fewer).
    """

    name: str
    partitions: int
    replication: int
    configs: Mapping[str, str] = field(default_factory=dict)
    start_offsets: tuple[int, ...] = ()
    end_offsets: tuple[int, ...] = ()
    configs_refused: str = ""

    @property
    def exists(self) -> bool:
        """Whether the cluster has the topic."""
        return self.partitions > 0


@dataclass(frozen=True, slots=True)
class _Found:
    """Metadata of one topic: the number of replicas of each partition, and whether each has a leader."""

    replicas: tuple[int, ...]
    led: bool


async def apply(connection: KafkaConnection, topics: Topics, replication: int | None = None) -> Report:
    """Create the missing topics and report what is not as declared, without changing it.

    `replication` overrides the file's replication factor. Returns once every partition has a leader. Several processes
    may call this at once. Raises KafkaError if the cluster cannot be reached, TopicsError if it refuses a topic.
    """
    replicas = topics.replication if replication is None else replication
    specs = topics.every_topic()
    async with _admin(connection) as admin:
        before = await _metadata(admin)
        missing = [spec for spec in specs if spec.name not in before]
        created = await _create(admin, missing, topics.partitions, replicas)
        found = await _wait_for_leaders(admin, [spec.name for spec in specs])
        configs, refused = await _configs(admin, specs)
    for name, why in refused.items():
        raise TopicsError(f"{name}: its configuration cannot be read: {why}")
    drift: list[Drift] = []
    not_reported: list[NotReported] = []
    for spec in specs:
        reported = configs[spec.name]
        drift.extend(_drift(spec, topics.partitions, replicas, found[spec.name].replicas, reported))
        if unknown := tuple(name for name in spec.configs if name not in reported):
            not_reported.append(NotReported(spec.name, unknown))
    present = tuple(spec.name for spec in specs if spec.name not in created)
    return Report(created, present, tuple(drift), tuple(not_reported))


async def show(connection: KafkaConnection, topics: Topics) -> tuple[TopicState, ...]:
    """Each declared topic and changelog as the cluster has it, in the order of the file. Creates nothing.

    Raises KafkaError if the cluster cannot be reached.
    """
    specs = topics.every_topic()
    async with _admin(connection) as admin:
        found = await _metadata(admin)
        there = [spec for spec in specs if spec.name in found]
        configs, refused = await _configs(admin, there)
    partitions = [
        TopicPartition(spec.name, number) for spec in there for number in range(len(found[spec.name].replicas))
    ]
    starts, ends = await _offsets(connection, partitions)

    def state(spec: TopicSpec) -> TopicState:
        if spec.name not in found:
            return TopicState(spec.name, partitions=0, replication=0)
        replicas = found[spec.name].replicas
        own = [TopicPartition(spec.name, number) for number in range(len(replicas))]
        return TopicState(
            name=spec.name,
            partitions=len(replicas),
            replication=min(replicas),
            configs=configs[spec.name],
            start_offsets=tuple(starts[partition] for partition in own),
            end_offsets=tuple(ends[partition] for partition in own),
            configs_refused=refused.get(spec.name, ""),
        )

    return tuple(state(spec) for spec in specs)


def drift_of(topics: Topics, states: Iterable[TopicState], replication: int | None = None) -> tuple[Drift, ...]:
    """The drift of the topics that exist, as `apply` reports it. `replication` overrides the file's."""
    replicas = topics.replication if replication is None else replication
    specs = {spec.name: spec for spec in topics.every_topic()}
    return tuple(
        item
        for state in states
        if state.exists
        for item in _drift(
            specs[state.name], topics.partitions, replicas, (state.replication,) * state.partitions, state.configs
        )
    )


def splits_calls(drift: Iterable[Drift]) -> bool:
    """Whether a topic has a wrong number of partitions: a call's partition would differ between topics."""
    return any(item.what == "partitions" for item in drift)


def _drift(
    spec: TopicSpec, partitions: int, replicas: int, found: tuple[int, ...], reported: Mapping[str, str]
) -> Iterable[Drift]:
    """Drift of one topic: `found` is the number of replicas of each partition, `reported` its configuration."""
    if len(found) != partitions:
        yield Drift(spec.name, "partitions", str(partitions), str(len(found)))
    if set(found) != {replicas}:
        yield Drift(spec.name, "replication", str(replicas), _range(found))
    for name, declared in spec.configs.items():
        if name in reported and not _equal(reported[name], declared):
            yield Drift(spec.name, name, declared, reported[name])


@asynccontextmanager
async def _admin(connection: KafkaConnection) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(**connection.client_options())
    try:
        await admin.start()
        yield admin
    finally:
        await admin.close()


async def _metadata(admin: AIOKafkaAdminClient) -> dict[str, _Found]:
    # Asks for all topics and never for one by name: a broker with auto.create.topics.enable would create it.
    return {
        topic["topic"]: _Found(
            replicas=tuple(len(partition["replicas"]) for partition in topic["partitions"]),
            led=all(partition["leader"] >= 0 and not partition["error_code"] for partition in topic["partitions"]),
        )
        for topic in await admin.describe_topics()
        if topic["partitions"] and not topic["error_code"]
    }


async def _create(
    admin: AIOKafkaAdminClient, missing: list[TopicSpec], partitions: int, replicas: int
) -> tuple[str, ...]:
    if not missing:
        return ()
    response = await admin.create_topics(
        [NewTopic(spec.name, partitions, replicas, topic_configs=spec.configs) for spec in missing]
    )
    created = []
    for name, code, message in response.topic_errors:
        match for_code(code):
            case error if error is TopicAlreadyExistsError:
                pass  # another process was faster: the topic is checked like any that existed
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


async def _configs(
    admin: AIOKafkaAdminClient, specs: Iterable[TopicSpec]
) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """The declared configuration of each topic as the broker reports it, and why it reports none; both by topic."""
    wanted = {spec.name: spec.configs for spec in specs}
    reported: dict[str, dict[str, str]] = {name: {} for name in wanted}
    refused: dict[str, str] = {}
    if not wanted:
        return reported, refused
    # Asks for all configurations by naming none: Tansu closes the connection when some are named.
    resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in wanted]
    for response in await admin.describe_configs(resources):
        for code, message, _kind_of_resource, name, entries in response.resources:
            if code:
                refused[name] = (message or for_code(code).__name__).rstrip(".")
                continue
            reported[name] = {
                entry[0]: entry[1] for entry in entries if entry[0] in wanted[name] and entry[1] is not None
            }
    return reported, refused


async def _offsets(
    connection: KafkaConnection, partitions: list[TopicPartition]
) -> tuple[dict[TopicPartition, int], dict[TopicPartition, int]]:
    if not partitions:
        return {}, {}
    async with open_reader(connection) as reader:
        return await reader.beginning_offsets(partitions), await current_ends(connection, reader, partitions)


def _equal(found: str, declared: str) -> bool:
    """Whether two configuration values are equal: numbers by value, lists in any order."""
    try:
        return float(found) == float(declared)
    except ValueError:
        return sorted(found.replace(" ", "").split(",")) == sorted(declared.split(","))


def _range(replicas: tuple[int, ...]) -> str:
    low, high = min(replicas), max(replicas)
    return str(low) if low == high else f"{low} to {high}"
