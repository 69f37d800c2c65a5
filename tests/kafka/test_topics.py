"""The declaration is read strictly; the cluster gets what is missing, and what differs is reported and left alone."""

from __future__ import annotations

import asyncio
import dataclasses
import uuid
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError

from dispatchai.cli.topics import render_report, render_show
from dispatchai.kafka.admin import Drift, NotReported, Report, TopicsError, TopicState, apply, show
from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.embedded_broker import free_port
from dispatchai.kafka.topics import Policy, TableSpec, Topic, Topics, TopicsFileError, TopicSpec
from dispatchai.resources import data_path

MINUTE_MS = 60_000
DAY_MS = 24 * 60 * MINUTE_MS


def fresh_topics(**changes: object) -> Topics:
    """One topic of each policy and one table, under names that no other test uses."""
    unique = uuid.uuid4().hex[:8]
    topics = Topics(
        partitions=2,
        replication=1,
        topics={
            "log": TopicSpec(f"log-{unique}", "id", None, Policy.DELETE, retention_ms=30 * DAY_MS),
            "view": TopicSpec(f"view-{unique}", "id", None, Policy.COMPACT, segment_ms=MINUTE_MS, min_lag_ms=30_000),
        },
        tables={"state": TableSpec("state", f"test{unique}", "State", segment_ms=MINUTE_MS, min_lag_ms=30_000)},
    )
    return dataclasses.replace(topics, **changes)  # type: ignore[arg-type]


async def create(connection: KafkaConnection, *topics: NewTopic) -> None:
    admin = AIOKafkaAdminClient(**connection.client_options())
    await admin.start()
    try:
        response = await admin.create_topics(list(topics))
        assert [code for _, code, _ in response.topic_errors] == [0] * len(topics)
    finally:
        await admin.close()


# -- the file


def test_the_shipped_file_declares_the_topics_of_the_architecture() -> None:
    topics = Topics.load()
    assert set(topics.topics) == {
        *("call-events", "audio-frames", "signals", "transcripts", "assessments", "packets"),
        *("live-calls", "dispatch-queue", "dispatch-actions", "dead-letters"),
    }
    assert topics.topics["audio-frames"].retention_ms == 30 * DAY_MS
    assert topics.topics["dispatch-actions"].retention_ms == 365 * DAY_MS
    assert topics.topics["packets"].retention_ms == 365 * DAY_MS
    assert {name for name, spec in topics.topics.items() if spec.policy is Policy.COMPACT} == {
        "live-calls",
        "dispatch-queue",
    }


def test_every_declared_schema_ships() -> None:
    topics = Topics.load()
    for spec in topics.every_topic():
        if spec.schema is not None:
            assert (data_path("schemas") / f"{spec.schema}.avsc").is_file(), spec.name
    assert [spec.name for spec in topics.topics.values() if spec.schema is None] == ["dead-letters"]


def test_changelogs_bear_the_names_that_faust_gives_them() -> None:
    names = {table.changelog.name for table in Topics.load().tables.values()}
    assert names == {
        "dispatchai-worker-calls-changelog",
        "dispatchai-worker-signals-changelog",
        "dispatchai-worker-triage-changelog",
        "dispatchai-speech-speech-changelog",
    }


def test_a_changelog_is_compacted_soon_so_that_recovery_stays_short() -> None:
    configs = Topics.load().tables["signals"].changelog.configs
    assert configs["cleanup.policy"] == "compact"
    assert int(configs["segment.ms"]) <= MINUTE_MS
    assert int(configs["segment.bytes"]) <= 16 * 1024 * 1024
    assert float(configs["min.cleanable.dirty.ratio"]) <= 0.01
    assert int(configs["min.compaction.lag.ms"]) == 30_000


def test_a_deleted_topic_closes_its_segments_often_enough_to_keep_its_retention() -> None:
    for spec in Topics.load().topics.values():
        if spec.policy is Policy.DELETE:
            assert int(spec.configs["segment.ms"]) <= DAY_MS, spec.name
            assert "segment.bytes" not in spec.configs


GOOD = "{schema: A, key: id, policy: delete, retention: 30d}"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "nothing"),
        ("[]", "list"),
        ("a: [", "no YAML"),
        ("replication: 1\ntopics: {}\ntables: {}", "partitions is missing"),
        ("partitions: 0\nreplication: 1\ntopics: {}\ntables: {}", "partitions must be a whole number from 1"),
        ("partitions: true\nreplication: 1\ntopics: {}\ntables: {}", "partitions must be"),
        ("partitions: 8\nreplication: 1\ntopics: {}\ntables: {}\nretention: 1d", "unknown field 'retention'"),
        ("partitions: 8\nreplication: 1\ntopics: []\ntables: {}", "topics must hold names"),
        ("partitions: 8\nreplication: 1\ntopics: {'a b': {}}\ntables: {}", "'a b' cannot be the name"),
    ],
)
def test_a_wrong_file_is_refused_by_name_and_field(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "topics.yaml"
    path.write_text(text)
    with pytest.raises(TopicsFileError, match=complaint) as caught:
        Topics.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("topic", "complaint"),
    [
        ("{schema: A, key: id, policy: delete}", "topics: a: retention is missing"),
        ("{schema: A, key: id, policy: keep, retention: 1d}", "topics: a: policy must be one of delete, compact"),
        ("{schema: A, key: id, policy: delete, retention: 30}", "topics: a: retention must be a text, found int 30"),
        ("{schema: A, key: id, policy: delete, retention: 1 month}", "retention must be a duration such as"),
        ("{schema: A, key: id, policy: delete, retention: 0d}", "retention must be a duration such as"),
        ("{schema: A, policy: delete, retention: 1d}", "topics: a: key is missing"),
        ("{schema: A, key: id, policy: delete, retention: 1d, segment: 1m}", "topics: a: unknown field 'segment'"),
        ("{schema: A, key: id, policy: compact, segment: 1m}", "topics: a: min_lag is missing"),
        ("delete", "topics: a: expected fields"),
    ],
)
def test_a_wrong_topic_is_refused_by_line_name_and_field(tmp_path: Path, topic: str, complaint: str) -> None:
    path = tmp_path / "topics.yaml"
    path.write_text(f"partitions: 8\nreplication: 1\ntopics:\n  a: {topic}\ntables: {{}}\n")
    with pytest.raises(TopicsFileError, match=complaint) as caught:
        Topics.load(path)
    assert str(caught.value).startswith(f"{path}:4: ")


def test_a_topic_may_not_take_the_name_of_a_changelog(tmp_path: Path) -> None:
    path = tmp_path / "topics.yaml"
    path.write_text(
        f"partitions: 8\nreplication: 1\ntopics:\n  dispatchai-w-t-changelog: {GOOD}\n"
        "tables:\n  t: {app: w, schema: A, segment: 1m, min_lag: 30s}\n"
    )
    with pytest.raises(TopicsFileError, match="declared twice") as caught:
        Topics.load(path)
    assert str(caught.value).startswith(f"{path}:4: topics: dispatchai-w-t-changelog: ")


def test_all_faults_of_a_file_are_reported_at_once(tmp_path: Path) -> None:
    path = tmp_path / "topics.yaml"
    path.write_text(
        "partitions: 8\nreplication: 1\n"
        "topics:\n  a: {policy: keep}\n  b: {key: id, policy: delete, retention: 1 month}\n"
        "tables:\n  t: {app: w, segment: 1m, min_lag: 30s}\n"
    )
    with pytest.raises(TopicsFileError) as caught:
        Topics.load(path)
    assert str(caught.value).splitlines() == [
        f"{path}:4: topics: a: policy must be one of delete, compact, not 'keep'",
        f"{path}:5: topics: b: retention must be a duration such as 30d, 12h, 1m or 30s, not '1 month'",
        f"{path}:7: tables: t: schema is missing",
    ]


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [("500ms", 500), ("30s", 30_000), ("1m", MINUTE_MS), ("12h", DAY_MS // 2), ("30d", 30 * DAY_MS)],
)
def test_durations(tmp_path: Path, text: str, milliseconds: int) -> None:
    path = tmp_path / "topics.yaml"
    path.write_text(
        f"partitions: 8\nreplication: 1\ntopics:\n  a: {{key: id, policy: delete, retention: {text}}}\ntables: {{}}\n"
    )
    assert Topics.load(path).topics["a"].retention_ms == milliseconds


# -- the cluster


async def test_what_is_missing_is_created_as_declared_and_a_second_run_changes_nothing(broker: KafkaConnection) -> None:
    topics = fresh_topics()
    names = tuple(spec.name for spec in topics.every_topic())

    first = await apply(broker, topics)
    assert first == Report(created=names, present=(), drift=(), not_reported=())

    second = await apply(broker, topics)
    assert second == Report(created=(), present=names, drift=(), not_reported=())
    assert second.exit_code == 0

    for spec, state in zip(topics.every_topic(), await show(broker, topics), strict=True):
        assert state.configs == spec.configs, spec.name
        assert (state.partitions, state.replication) == (2, 1)


async def test_the_projects_own_topics_are_as_declared(broker: KafkaConnection, topics: Topics) -> None:
    report = await apply(broker, topics, replication=1)
    assert report.exit_code == 0, render_report(report)
    assert len(report.present) == len(topics.every_topic())


async def test_drift_is_reported_and_left_alone(broker: KafkaConnection) -> None:
    topics = fresh_topics()
    log, view = topics.topics["log"], topics.topics["view"]
    await create(
        broker,
        NewTopic(log.name, 3, 1, topic_configs=log.configs | {"retention.ms": str(7 * DAY_MS)}),
        NewTopic(view.name, 2, 1, topic_configs=view.configs | {"cleanup.policy": "delete", "segment.ms": "3600000"}),
    )
    expected = {
        Drift(log.name, "partitions", "2", "3"),
        Drift(log.name, "retention.ms", str(30 * DAY_MS), str(7 * DAY_MS)),
        Drift(view.name, "cleanup.policy", "compact", "delete"),
        Drift(view.name, "segment.ms", str(MINUTE_MS), "3600000"),
    }
    for attempt in ("first", "second"):
        report = await apply(broker, topics)
        assert set(report.drift) == expected, f"{attempt} run"
        assert report.exit_code == 1
        assert report.splits_calls
    settings_alone = dataclasses.replace(
        report, drift=tuple(item for item in report.drift if item.what != "partitions")
    )
    assert settings_alone.exit_code == 1
    assert not settings_alone.splits_calls


async def test_a_topic_with_the_brokers_defaults_is_never_called_as_declared(broker: KafkaConnection) -> None:
    """Apache Kafka reports its defaults, which differ. Tansu reports nothing, and the report says so."""
    topics = fresh_topics()
    log = topics.topics["log"]
    await create(broker, NewTopic(log.name, 2, 1))
    report = await apply(broker, topics)
    assert {item.what for item in report.drift} >= {"retention.ms"} or report.not_reported == (
        NotReported(
            log.name,
            ("message.timestamp.after.max.ms", "max.message.bytes", "cleanup.policy", "retention.ms", "segment.ms"),
        ),
    )


async def test_several_processes_may_apply_at_once(broker: KafkaConnection) -> None:
    topics = fresh_topics()
    reports = await asyncio.gather(*(apply(broker, topics) for _ in range(4)))
    created = [name for report in reports for name in report.created]
    assert sorted(created) == sorted(spec.name for spec in topics.every_topic()), "each by one of them"
    assert all(report.exit_code == 0 for report in reports)


async def test_show_creates_nothing(broker: KafkaConnection) -> None:
    topics = fresh_topics()
    states = await show(broker, topics)
    assert [state.exists for state in states] == [False, False, False]
    assert [state.exists for state in await show(broker, topics)] == [False, False, False]


async def test_show_counts_what_is_in_each_partition(broker: KafkaConnection) -> None:
    topics = fresh_topics()
    await apply(broker, topics)
    name = topics.topics["log"].name
    async with AIOKafkaProducer(**broker.client_options(), acks="all") as producer:
        for partition, count in ((0, 3), (1, 1)):
            for _ in range(count):
                await producer.send_and_wait(name, b"value", partition=partition)
    log = (await show(broker, topics))[0]
    assert log.start_offsets == (0, 0)
    assert log.end_offsets == (3, 1)


@pytest.mark.parametrize("broker", ["apache-kafka"], indirect=True)
async def test_a_refusal_names_the_topic_and_the_reason(broker: KafkaConnection) -> None:
    topics = fresh_topics(tables={})
    with pytest.raises(TopicsError, match=r"log-.*refuses.*replication factor"):
        await apply(broker, topics, replication=3)


async def test_a_cluster_that_is_away_is_an_error_of_kafka() -> None:
    with pytest.raises(KafkaError):
        await apply(KafkaConnection(f"127.0.0.1:{free_port()}"), fresh_topics())


# -- what people see


def test_the_report_names_each_drift_with_both_values() -> None:
    report = Report(
        created=("signals",),
        present=("call-events", "live-calls"),
        drift=(Drift("call-events", "retention.ms", "2592000000", "604800000"),),
        not_reported=(NotReported("live-calls", ("segment.ms",)),),
    )
    assert render_report(report).splitlines() == [
        "created  signals",
        "drift    call-events: retention.ms is 604800000 (7d), declared 2592000000 (30d)",
        "unknown  live-calls: segment.ms: not reported by this broker",
        "1 created, 1 present as declared, 1 differ (not changed)",
    ]


def test_the_table_says_what_is_missing_and_what_the_broker_does_not_report() -> None:
    text = render_show(
        [
            TopicState(
                "signals",
                partitions=2,
                replication=1,
                configs={"cleanup.policy": "delete", "retention.ms": "2592000000"},
                start_offsets=(5, 0),
                end_offsets=(9, 2),
            ),
            TopicState("live-calls", partitions=0, replication=0),
        ]
    )
    lines = text.splitlines()
    assert lines[1].split() == ["signals", "2", "1", "delete", "30d", "?", "9", "2", "6"]
    assert lines[2].split() == ["live-calls", "missing"]
    assert lines[3] == "? not reported by this broker"


def test_each_topic_of_the_file_has_a_name_in_the_program() -> None:
    assert list(Topic) == list(Topics.load().topics)
