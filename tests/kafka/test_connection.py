"""Addresses and credentials reach every client library, and no log."""

from __future__ import annotations

import asyncio
import dataclasses
import ssl
import uuid
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError
from faust.auth import SASLCredentials, SSLCredentials
from faust.transport.drivers.aiokafka import credentials_to_aiokafka_auth

from dispatchai.kafka.connection import KafkaConnection
from tests.support.kafka.certificates import make_pems


def with_login(protocol: str, mechanism: str = "SCRAM-SHA-512") -> KafkaConnection:
    return KafkaConnection(
        "kafka:9093",
        protocol,
        mechanism,
        sasl_username="gateway",
        sasl_password="correct horse",
    )


def test_a_password_is_in_no_repr() -> None:
    connection = with_login("SASL_PLAINTEXT")
    assert "correct horse" not in repr(connection)
    assert "correct horse" not in str(connection.faust_options())


@pytest.mark.parametrize("address", ["", " , ", "kafka", "kafka:", ":9092", "kafka:http", "kafka:0", "kafka:70000"])
def test_an_address_that_no_client_could_use_is_refused_at_once(address: str) -> None:
    with pytest.raises(ValueError, match="Kafka address"):
        KafkaConnection(address)


def test_several_addresses_may_have_spaces_between_them() -> None:
    connection = KafkaConnection("a:9092, b:9093 ,[::1]:9094")
    assert connection.servers == ("a:9092", "b:9093", "[::1]:9094")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"security_protocol": "TLS"}, "security protocol"),
        ({"security_protocol": "SASL_SSL"}, "user name"),
        ({"security_protocol": "SASL_SSL", "sasl_username": "u", "sasl_mechanism": "MD5"}, "mechanism"),
        ({"security_protocol": "SSL", "ssl_key_file": Path("key.pem")}, "certificate"),
    ],
)
def test_a_combination_that_cannot_work_is_refused_at_once(options: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        KafkaConnection("kafka:9092", **options)  # type: ignore[arg-type]


def test_tls_checks_the_name_and_the_chain_of_the_broker() -> None:
    context = KafkaConnection("kafka:9093", "SSL").client_options()["ssl_context"]
    assert context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED


def test_a_tls_file_that_is_missing_is_an_error_and_not_a_connection_without_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        KafkaConnection("kafka:9093", "SSL", ssl_ca_file=tmp_path / "ca.pem").client_options()


async def test_every_aiokafka_client_takes_the_options() -> None:
    options = with_login("SASL_SSL", "SCRAM-SHA-256").client_options()
    for client in (AIOKafkaProducer, AIOKafkaConsumer, AIOKafkaAdminClient):
        client(**options)


@pytest.mark.parametrize("protocol", ["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"])
def test_faust_logs_in_as_the_other_clients_do(protocol: str) -> None:
    connection = with_login(protocol)
    own = connection.client_options()
    credentials = connection.faust_options()["broker_credentials"]
    faust = credentials_to_aiokafka_auth(credentials)
    for name in ("security_protocol", "sasl_mechanism", "sasl_plain_username", "sasl_plain_password"):
        assert faust.get(name) == own.get(name), name
    assert isinstance(faust.get("ssl_context"), type(own["ssl_context"]))
    match protocol:
        case "PLAINTEXT":
            assert credentials is None
        case "SSL":
            assert isinstance(credentials, SSLCredentials)
        case _:
            assert isinstance(credentials, SASLCredentials)


def test_faust_is_given_every_address_under_the_programs_transport() -> None:
    options = KafkaConnection("a:9092,b:9093").faust_options()
    assert options["broker"] == ["dispatchai://a:9092", "dispatchai://b:9093"]


# -- a cluster that asks who one is


async def test_all_clients_pass_a_cluster_that_asks_for_certificate_name_and_password(
    secured_kafka: KafkaConnection,
) -> None:
    options, topic = secured_kafka.client_options(), f"secured-{uuid.uuid4().hex[:8]}"
    admin = AIOKafkaAdminClient(**options)
    await admin.start()
    try:
        response = await admin.create_topics([NewTopic(topic, 1, 1)])
    finally:
        await admin.close()
    assert [code for _, code, _ in response.topic_errors] == [0]
    async with AIOKafkaProducer(**options, acks="all") as producer:
        await producer.send_and_wait(topic, b"value")
    async with AIOKafkaConsumer(topic, **options, auto_offset_reset="earliest") as consumer:
        assert (await asyncio.wait_for(consumer.getone(), 30)).value == b"value"


async def test_a_wrong_password_is_refused(secured_kafka: KafkaConnection) -> None:
    with pytest.raises(KafkaError):
        await connect(dataclasses.replace(secured_kafka, sasl_password="guessed"))


async def test_a_cluster_that_the_given_authority_did_not_sign_is_not_trusted(
    secured_kafka: KafkaConnection, tmp_path: Path
) -> None:
    other = make_pems(tmp_path)
    with pytest.raises((KafkaError, OSError)):
        await connect(dataclasses.replace(secured_kafka, ssl_ca_file=other.authority))


async def connect(connection: KafkaConnection) -> None:
    admin = AIOKafkaAdminClient(**connection.client_options())
    try:
        await admin.start()
    finally:
        await admin.close()
