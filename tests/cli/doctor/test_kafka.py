"""Kafka: addresses, credentials, topics and durability, against real brokers."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from pydantic import SecretStr

from dispatchai.cli import doctor
from dispatchai.cli.doctor import Check, Limits, Result, Verdict
from dispatchai.kafka.admin import TopicState, apply
from dispatchai.kafka.broker_binary import broker_binary
from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.embedded_broker import EmbeddedBroker, free_port
from dispatchai.kafka.readiness import wait_until_ready
from dispatchai.kafka.topics import Topics
from dispatchai.process.child import Child
from dispatchai.process.run_info import RunInfo
from dispatchai.settings import Settings
from tests.cli.doctor.support import (
    QUICK,
    the,
)


async def check_kafka(settings: Settings, run: RunInfo | None = None, limits: Limits = QUICK) -> list[Result]:
    return await doctor.check_kafka(settings, run, limits)


def of(connection: KafkaConnection, **changes: Any) -> Settings:
    """Settings that lead to `connection`."""
    values: dict[str, Any] = {
        "kafka_bootstrap_servers": connection.bootstrap_servers,
        "kafka_is_embedded": connection.embedded,
        "kafka_security_protocol": connection.security_protocol,
        "kafka_sasl_mechanism": connection.sasl_mechanism,
        "kafka_sasl_username": connection.sasl_username,
        "kafka_sasl_password": SecretStr(connection.sasl_password),
        "kafka_ssl_ca_file": connection.ssl_ca_file,
        "kafka_ssl_cert_file": connection.ssl_cert_file,
        "kafka_ssl_key_file": connection.ssl_key_file,
    }
    return Settings(**(values | changes))


async def test_a_kafka_with_all_topics_is_well(broker: KafkaConnection, topics: Topics) -> None:
    results = await check_kafka(of(broker))
    assert [the(results, check).verdict for check in (Check.KAFKA, Check.BROKERS, Check.TOPICS)] == [Verdict.OK] * 3
    # One broker is not what calls should depend on.
    assert the(results, Check.DURABILITY).verdict is Verdict.WARN


async def test_the_broker_of_a_run_on_this_machine_is_looked_at(tmp_path: Path) -> None:
    async with EmbeddedBroker() as broker:
        await apply(broker.connection, Topics.load())
        run = RunInfo(
            gateway_url="http://127.0.0.1:1",
            ws_url="ws://127.0.0.1:1/ws",
            console_url="http://127.0.0.1:1",
            carrier_port=1,
            bootstrap_servers=broker.bootstrap_servers,
        )
        results = await check_kafka(Settings(), run)
        assert the(results, Check.TOPICS).verdict is Verdict.OK
        assert "memory" in the(results, Check.DURABILITY).seen


async def test_missing_and_differing_topics_are_reported() -> None:
    async with EmbeddedBroker() as broker:
        result = the(await check_kafka(of(broker.connection)), Check.TOPICS)
        assert (result.verdict, "dead-letters" in result.seen) == (Verdict.FAIL, True)
        assert "dispatchai topics apply" in result.todo

        admin = AIOKafkaAdminClient(**broker.connection.client_options())
        await admin.start()
        await admin.create_topics([NewTopic("audio-frames", 3, 1)])
        await admin.close()
        await apply(broker.connection, Topics.load())
        result = the(await check_kafka(of(broker.connection)), Check.TOPICS)
        assert (result.verdict, "audio-frames: partitions is 3, declared 8" in result.seen) == (Verdict.FAIL, True)


async def test_too_few_copies_are_reported(broker: KafkaConnection, topics: Topics) -> None:
    results = await check_kafka(of(broker, kafka_replication_factor=3))
    assert "replication is 1, declared 3" in the(results, Check.TOPICS).seen


@pytest.mark.parametrize(
    ("copies", "brokers", "min_insync", "verdict", "seen"),
    [
        (3, 3, 2, Verdict.OK, "3 replicas"),
        (3, 3, 1, Verdict.WARN, "below 2"),
        (3, 3, 3, Verdict.WARN, "equals the replication factor"),
        (1, 3, 1, Verdict.WARN, "1 replicas"),
        (3, 1, 1, Verdict.FAIL, "there are 1 brokers"),
    ],
)
def test_durability_follows_from_copies_brokers_and_acknowledgements(
    copies: int, brokers: int, min_insync: int, verdict: Verdict, seen: str
) -> None:
    result = doctor.check_durability(copies, brokers, {"call-events": min_insync})
    assert (result.verdict, seen in result.seen) == (verdict, True), result


def test_a_topic_that_takes_smaller_batches_than_declared_is_a_failure_and_not_a_warning() -> None:
    topics = Topics.load()
    states = [TopicState(spec.name, topics.partitions, 1, spec.configs) for spec in topics.every_topic()]
    assert doctor.check_topics(topics, states, 1).verdict is Verdict.OK
    smaller = replace(states[0], configs={**states[0].configs, "max.message.bytes": "100000"})
    result = doctor.check_topics(topics, [smaller, *states[1:]], 1)
    assert result.verdict is Verdict.FAIL
    assert f"max.message.bytes=1048588 for {smaller.name}" in result.todo


async def test_a_refused_configuration_names_the_right_and_hides_no_other_check(
    broker: KafkaConnection, topics: Topics, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refused:
        def __init__(self, names: list[str]) -> None:
            self.resources: list[Any] = [(29, "Topic authorization failed.", 2, name, []) for name in names]

    async def describe_configs(_: AIOKafkaAdminClient, resources: list[Any], **options: Any) -> list[Refused]:
        return [Refused([resource.name for resource in resources])]

    monkeypatch.setattr(AIOKafkaAdminClient, "describe_configs", describe_configs)
    results = await check_kafka(of(broker, kafka_is_embedded=False))
    result = the(results, Check.TOPICS)
    assert (result.verdict, "DescribeConfigs" in result.todo) == (Verdict.WARN, True), result
    assert "partitions and replicas" in result.seen
    assert "call-events" in result.seen
    # There is one broker, which does not need the configuration to be seen.
    assert "losing a broker" in the(results, Check.DURABILITY).seen
    results = await check_kafka(of(broker, kafka_replication_factor=3))
    assert "replication is 1, declared 3" in the(results, Check.TOPICS).seen, "what can be compared is compared"


def test_durability_that_cannot_be_read_is_not_good() -> None:
    result = doctor.check_durability(3, 3, {}, ["call-events"])
    assert (result.verdict, "DescribeConfigs" in result.todo) == (Verdict.WARN, True)


async def test_no_broker_is_reported_with_its_address() -> None:
    port = free_port()
    (result,) = await check_kafka(Settings(kafka_bootstrap_servers=f"127.0.0.1:{port}"))
    assert (result.verdict, result.seen) == (Verdict.FAIL, f"127.0.0.1:{port}: nothing listens there")


async def test_one_broker_away_is_a_warning(broker: KafkaConnection, topics: Topics) -> None:
    away = f"127.0.0.1:{free_port()}"
    results = await check_kafka(of(broker, kafka_bootstrap_servers=f"{away},{broker.bootstrap_servers}"))
    assert [result.verdict for result in results if result.check is Check.KAFKA] == [Verdict.WARN, Verdict.OK]


async def test_an_address_that_the_broker_advertises_wrongly_is_found() -> None:
    """The classic of containers: the first contact works, and clients are sent on to where nothing is."""
    port, wrong = free_port(), free_port()
    command: list[str | Path] = [
        *(broker_binary(), "broker", "--listener-url", f"tcp://127.0.0.1:{port}"),
        *("--advertised-listener-url", f"tcp://127.0.0.1:{wrong}", "--storage-engine", "memory://tansu/"),
    ]
    async with Child(command, env={}, on_line=lambda _: None):
        connection = KafkaConnection(f"127.0.0.1:{port}", embedded=True)
        await wait_until_ready(connection, 30.0)
        results = await check_kafka(of(connection))
    result = the(results, Check.BROKERS)
    assert (result.verdict, f"127.0.0.1:{wrong}" in result.seen) == (Verdict.FAIL, True)
    assert "advertised.listeners" in result.todo


async def test_kafkas_credentials_are_tried(secured_kafka: KafkaConnection) -> None:
    assert the(await check_kafka(of(secured_kafka)), Check.KAFKA).verdict is Verdict.OK


@pytest.mark.parametrize(
    ("changes", "seen"),
    [
        ({"kafka_sasl_password": SecretStr("wrong horse")}, "is refused"),
        ({"kafka_sasl_mechanism": "SCRAM-SHA-256"}, "does not offer this SASL mechanism"),
        ({"kafka_ssl_ca_file": None}, "certificate is not trusted"),
        ({"kafka_ssl_cert_file": None, "kafka_ssl_key_file": None}, ""),
    ],
)
async def test_what_a_secured_kafka_refuses_is_reported(
    secured_kafka: KafkaConnection, changes: dict[str, Any], seen: str
) -> None:
    (result,) = await check_kafka(of(secured_kafka, **changes))
    assert (result.verdict, seen in result.seen, bool(result.todo)) == (Verdict.FAIL, True, True), result
    assert "wrong horse" not in result.seen + result.todo


async def test_a_kafka_that_never_answers_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        settings = Settings(kafka_bootstrap_servers=f"127.0.0.1:{silent.getsockname()[1]}")
        (result,) = await check_kafka(settings, limits=Limits(kafka_s=0.1))
    assert (result.verdict, "no answer in 0.1 s" in result.seen) == (Verdict.FAIL, True)


async def test_a_missing_tls_file_is_reported(tmp_path: Path) -> None:
    settings = Settings(
        kafka_bootstrap_servers="127.0.0.1:9092", kafka_security_protocol="SSL", kafka_ssl_ca_file=tmp_path / "none.pem"
    )
    (result,) = await check_kafka(settings)
    assert (result.verdict, "cannot be used" in result.seen) == (Verdict.FAIL, True)
    assert f"KAFKA_SSL_CA_FILE={tmp_path / 'none.pem'} cannot be read: No such file or directory" in result.seen
    assert "Errno" not in result.seen
