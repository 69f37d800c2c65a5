"""Checks of Kafka: each address, the credentials, the topics, and whether records survive the loss of a broker."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.conn import create_conn
from aiokafka.errors import (
    IllegalSaslStateError,
    KafkaError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
)
from aiokafka.protocol.metadata import MetadataRequest

from dispatchai.cli.doctor.http_probe import ssl_reason
from dispatchai.cli.doctor.result import Check, Limits, Result, fail, ok, skipped, warn
from dispatchai.kafka.admin import TopicState, drift_of, show, splits_calls
from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.errors import KafkaOperationError
from dispatchai.kafka.topics import MESSAGE_MAX_BYTES, Topics, TopicsFileError
from dispatchai.process.run_info import RunInfo
from dispatchai.settings import Settings

MIN_INSYNC: Final = 2
"""Replicas that must have a record before it is acknowledged, so that it survives the loss of a broker."""

CLUSTER_REPLICAS: Final = 3
"""Replication factor with which MIN_INSYNC is still met while one broker is down."""


@dataclass(frozen=True, slots=True)
class _Cluster:
    """What one broker reports about its cluster: its id, and the addresses to which clients are sent."""

    identifier: str | None
    brokers: tuple[tuple[str, int], ...]


async def check_kafka(settings: Settings, run: RunInfo | None, limits: Limits) -> list[Result]:
    """Whether every address answers, the credentials are accepted, and the topics are as declared."""
    if settings.kafka_bootstrap_servers:
        servers = None
    elif run is not None:
        servers = run.bootstrap_servers
    else:
        return [
            skipped(Check.KAFKA, "KAFKA_BOOTSTRAP_SERVERS is not set: `dispatchai up` starts an embedded broker, "
            "which keeps nothing")
        ]  # fmt: skip
    try:
        connection = settings.kafka(servers)
        options = connection.client_options()
    except (ValueError, OSError) as error:
        return [fail(Check.KAFKA, f"the Kafka settings cannot be used: {error}", "see KAFKA_* in .env.example")]
    del options["bootstrap_servers"]
    cluster: _Cluster | None = None
    faults = []
    for server in connection.servers:
        answer = await _probe_broker(server, options, limits)
        if isinstance(answer, _Cluster):
            cluster = cluster or answer
        else:
            faults.append(answer)
    if cluster is None:
        return faults
    if faults:  # clients try one after the other, so one that answers is enough
        return [
            *(warn(fault.check, fault.seen, fault.todo) for fault in faults),
            *await _check_cluster(settings, connection, cluster, options, limits),
        ]
    return await _check_cluster(settings, connection, cluster, options, limits)


async def _probe_broker(server: str, options: Mapping[str, Any], limits: Limits) -> _Cluster | Result:
    host, _, port = server.rpartition(":")
    try:
        async with asyncio.timeout(limits.kafka_s):
            # Connecting asks for the versions of the protocol and, with SASL, authenticates.
            wire = await create_conn(host, int(port), **options)
            try:
                metadata = (await wire.send(MetadataRequest([]))).to_object()
            finally:
                wire.close()
    except (KafkaError, OSError, TimeoutError) as error:
        seen, todo = _kafka_fault(error, limits)
        return fail(Check.KAFKA, f"{server}: {seen}", todo)
    brokers = tuple((str(broker["host"]), int(broker["port"])) for broker in metadata["brokers"])
    return _Cluster(metadata.get("cluster_id"), brokers)


async def refusal(connection: KafkaConnection, limits: Limits) -> str | None:
    """Why a broker that answers refuses this client, and what to do; None if no broker refuses it.

    Kafka's clients only report that no broker could be used.
    """
    try:
        options = connection.client_options()
    except (ValueError, OSError) as error:
        return f"the Kafka settings cannot be used: {error}"
    del options["bootstrap_servers"]
    for server in connection.servers:
        host, _, port = server.rpartition(":")
        try:
            async with asyncio.timeout(limits.kafka_s):
                (await create_conn(host, int(port), **options)).close()
        except _REFUSALS as error:
            seen, todo = _kafka_fault(error, limits)
            return f"Kafka at {server}: {seen}: {todo}"
        except (KafkaError, OSError, TimeoutError):
            continue
    return None


_REFUSALS: Final = (SaslAuthenticationFailed, UnsupportedSaslMechanismError, IllegalSaslStateError, ssl.SSLError)


def _kafka_fault(error: Exception, limits: Limits) -> tuple[str, str]:
    """A broker's fault, and what to do. The error's text is left out: a broker may repeat what it was sent."""
    match error:
        case SaslAuthenticationFailed():
            return (
                "the user name or the password is refused",
                "compare KAFKA_SASL_USERNAME, KAFKA_SASL_PASSWORD and KAFKA_SASL_MECHANISM with the cluster's",
            )
        case UnsupportedSaslMechanismError() | IllegalSaslStateError():
            return "it does not offer this SASL mechanism", "set KAFKA_SASL_MECHANISM to one that the listener offers"
        case ssl.SSLCertVerificationError():
            return (
                f"its certificate is not trusted: {error.verify_message}",
                "set KAFKA_SSL_CA_FILE to the authority's PEM file, and use a name that the certificate has",
            )
        case ssl.SSLError():
            return (
                f"no TLS: {ssl_reason(error)}",
                "the listener may not use TLS (KAFKA_SECURITY_PROTOCOL), or may require a client certificate "
                "(KAFKA_SSL_CERT_FILE)",
            )
        case TimeoutError():
            return (
                f"no answer in {limits.kafka_s:g} s",
                "look for a firewall, and for KAFKA_SECURITY_PROTOCOL: a TLS listener does not answer without TLS",
            )
        case socket.gaierror():
            return "its name is not known", "correct KAFKA_BOOTSTRAP_SERVERS or the DNS"
        case ConnectionRefusedError():
            return "nothing listens there", "start Kafka, or correct KAFKA_BOOTSTRAP_SERVERS"
        case KafkaError():
            return (
                f"it ended the connection ({type(error).__name__})",
                "see the broker's log; KAFKA_SECURITY_PROTOCOL must match the listener",
            )
        case OSError():
            return error.strerror or type(error).__name__, "correct KAFKA_BOOTSTRAP_SERVERS or the network"
        case _:
            return type(error).__name__, "see the broker's log"


async def _check_cluster(
    settings: Settings, connection: KafkaConnection, cluster: _Cluster, options: Mapping[str, Any], limits: Limits
) -> list[Result]:
    count = len(cluster.brokers)
    how = f"{connection.security_protocol}, user {connection.sasl_username}" if connection.uses_sasl else (
        connection.security_protocol
    )  # fmt: skip
    named = f"cluster {cluster.identifier}" if cluster.identifier else "a cluster without an id"
    results = [ok(Check.KAFKA, f"{named} of {count} broker{'' if count == 1 else 's'} ({how})")]
    answers = await asyncio.gather(
        *(_probe_broker(f"{host}:{port}", options, limits) for host, port in cluster.brokers)
    )
    unreachable = [answer for answer in answers if isinstance(answer, Result)]
    results += [
        fail(
            Check.BROKERS,
            f"clients are sent to {fault.seen}",
            "set advertised.listeners of that broker to an address that this machine reaches",
        )
        for fault in unreachable
    ] or [ok(Check.BROKERS, "every broker answers at the address that it advertises")]
    if unreachable:
        return [*results, skipped(Check.TOPICS, "not every broker can be reached")]
    try:
        async with asyncio.timeout(2 * limits.kafka_s):
            results.extend(await _check_topics(settings, connection, count))
    except (KafkaOperationError, KafkaError, OSError, TimeoutError) as error:
        why = str(error) if isinstance(error, KafkaOperationError) else type(error).__name__
        results.append(
            fail(
                Check.TOPICS,
                f"the topics cannot be read: {why}",
                f"{_user(connection)} needs the right to Describe and DescribeConfigs the topics "
                "(deploy/kafka/acls.sh); the broker's log says more",
            )
        )
    return results


async def _check_topics(settings: Settings, connection: KafkaConnection, brokers: int) -> list[Result]:
    try:
        topics = Topics.load(settings.topics_file)
    except TopicsFileError:
        return [skipped(Check.TOPICS, "the list of topics cannot be read: see `topics-file`")]
    states = await show(connection, topics)
    results = [check_topics(topics, states, settings.kafka_replication_factor, _user(connection))]
    there = [state.name for state in states if state.exists]
    if connection.embedded:
        results.append(warn(Check.DURABILITY, "the embedded broker keeps records only in memory", _OWN_KAFKA))
    elif there:
        unread = [state.name for state in states if state.configs_refused]
        min_insync = await _min_insync(connection, there)
        results.append(check_durability(settings.kafka_replication_factor, brokers, min_insync, unread))
    return results


def _user(connection: KafkaConnection) -> str:
    return f"Kafka user {connection.sasl_username}" if connection.uses_sasl else "this Kafka user"


MAX_BATCH: Final = "max.message.bytes"

_OWN_KAFKA: Final = "set KAFKA_BOOTSTRAP_SERVERS to a Kafka that keeps its records on disk"


def check_topics(topics: Topics, states: Sequence[TopicState], replicas: int, user: str = "this Kafka user") -> Result:
    """Whether the topics are as declared, with this replication factor, as far as `user` may see them."""
    check = Check.TOPICS
    missing = [state.name for state in states if not state.exists]
    if missing:
        return fail(
            check,
            f"missing: {', '.join(missing)}",
            f"run `dispatchai topics apply`; if they exist, {user} has no right to Describe them: run "
            "deploy/kafka/acls.sh",
        )
    drift = drift_of(topics, states, replicas)
    refused = [state for state in states if state.configs_refused]
    if refused and not drift:
        return warn(
            check,
            f"all topics exist with their partitions and replicas; the configuration of {_names(refused)} cannot be "
            f"read: {refused[0].configs_refused}",
            f"{user} has no right to DescribeConfigs them: run deploy/kafka/acls.sh",
        )
    if not drift:
        return ok(check, f"all {len(states)} topics and changelogs are as declared")
    differences = "; ".join(f"{item.topic}: {item.what} is {item.found}, declared {item.declared}" for item in drift)
    if splits_calls(drift):
        return fail(check, differences, "all topics need the same number of partitions: docs/deploy.md, Kafka")
    if small := [item.topic for item in drift if item.what == MAX_BATCH and int(item.found) < int(item.declared)]:
        return fail(
            check,
            differences,
            f"a process ends when Kafka refuses its batch: set {MAX_BATCH}={MESSAGE_MAX_BYTES} for {', '.join(small)} "
            "with kafka-configs.sh",
        )
    return warn(
        check, differences, "change it with Kafka's own tools, or change topics.yaml or KAFKA_REPLICATION_FACTOR"
    )


def _names(states: Sequence[TopicState]) -> str:
    return ", ".join(state.name for state in states)


async def _min_insync(connection: KafkaConnection, names: Sequence[str]) -> dict[str, int]:
    """`min.insync.replicas` of each topic whose broker reports it."""
    admin = AIOKafkaAdminClient(**connection.client_options())
    try:
        await admin.start()
        responses = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name) for name in names])
    finally:
        await admin.close()
    return {
        name: int(entry[1])
        for response in responses
        for code, _, _, name, entries in response.resources
        if not code
        for entry in entries
        if entry[0] == "min.insync.replicas" and entry[1] is not None
    }


def check_durability(replicas: int, brokers: int, min_insync: Mapping[str, int], unread: Sequence[str] = ()) -> Result:
    """Whether an acknowledged record survives the loss of a broker, and the gateway continues without that broker.

    `replicas` is the configured replication factor; `min_insync` is by topic; it is not known for the topics `unread`.
    """
    check = Check.DURABILITY
    if replicas > brokers:
        return fail(
            check,
            f"KAFKA_REPLICATION_FACTOR is {replicas}, and there are {brokers} brokers",
            "add brokers, or lower it before you run `dispatchai topics apply`",
        )
    if brokers < CLUSTER_REPLICAS or replicas < CLUSTER_REPLICAS:
        return warn(
            check,
            f"{brokers} brokers, {replicas} replicas of each topic: losing a broker stops the gateway or loses records",
            f"use {CLUSTER_REPLICAS} brokers, KAFKA_REPLICATION_FACTOR={CLUSTER_REPLICAS} and "
            f"min.insync.replicas={MIN_INSYNC}",
        )
    low = sorted(name for name, value in min_insync.items() if value < MIN_INSYNC)
    if low:
        return warn(
            check,
            f"min.insync.replicas below {MIN_INSYNC}: {', '.join(low)}",
            f"set it to {MIN_INSYNC}; otherwise an acknowledged record may be on one broker only",
        )
    high = sorted(name for name, value in min_insync.items() if value >= replicas)
    if high:
        return warn(
            check,
            f"min.insync.replicas equals the replication factor: {', '.join(high)}",
            f"set it to {MIN_INSYNC}; otherwise restarting a broker stops the gateway",
        )
    if unread:
        return warn(
            check,
            f"min.insync.replicas of {', '.join(unread)} cannot be read",
            "give this Kafka user the right to DescribeConfigs them: run deploy/kafka/acls.sh",
        )
    return ok(check, f"{replicas} replicas, of which {MIN_INSYNC} or more acknowledge")
