"""The embedded broker is ready when it says so, is seen by this machine alone, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import re
import socket
from importlib import resources
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from dispatchai.kafka import broker_binary as binary_module
from dispatchai.kafka import embedded_broker as broker_module
from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.embedded_broker import BrokerError, EmbeddedBroker, free_port
from dispatchai.kafka.readiness import BrokerNotReadyError, wait_until_ready
from dispatchai.kafka.topics import Topics


async def test_what_is_produced_as_soon_as_it_started_is_there() -> None:
    async with EmbeddedBroker() as broker:
        options = KafkaConnection(broker.bootstrap_servers).client_options()
        async with AIOKafkaProducer(**options, acks="all") as producer:
            await producer.send_and_wait("first", b"value", key=b"key", partition=0)
        consumer = AIOKafkaConsumer(**options, auto_offset_reset="earliest")
        async with consumer:
            consumer.assign([TopicPartition("first", 0)])
            record = await asyncio.wait_for(consumer.getone(), 30)
    assert (record.key, record.value) == (b"key", b"value")


async def test_it_listens_on_loopback_only() -> None:
    async with EmbeddedBroker() as broker:
        host, _, port = broker.bootstrap_servers.rpartition(":")
        assert host == "127.0.0.1"
        assert _listening_addresses(int(port)) <= {"127.0.0.1"}


def _listening_addresses(port: int) -> set[str]:
    """Addresses on which this machine listens at `port`, from /proc; empty where there is none."""
    table = Path("/proc/net/tcp")
    if not table.exists():
        return set()
    rows = (line.split() for line in table.read_text().splitlines()[1:])
    listening = [row[1] for row in rows if row[3] == "0A"]
    addresses = [address.split(":") for address in listening]
    return {
        socket.inet_ntoa(bytes.fromhex(host)[::-1]) for host, hexadecimal in addresses if int(hexadecimal, 16) == port
    }


async def test_its_port_is_closed_when_it_has_stopped() -> None:
    broker = EmbeddedBroker()
    await broker.start()
    host, _, port = broker.bootstrap_servers.rpartition(":")
    await broker.stop()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(host, int(port))
    with pytest.raises(RuntimeError, match="not running"):
        _ = broker.bootstrap_servers


async def test_settings_of_another_tansu_in_the_environment_do_not_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_ENGINE", "postgres://nowhere")
    monkeypatch.setenv("LISTENER_URL", "tcp://0.0.0.0:1")
    async with EmbeddedBroker() as broker:
        assert re.fullmatch(r"127\.0\.0\.1:\d+", broker.bootstrap_servers)


async def test_a_broker_that_ends_at_once_is_an_error_that_says_what_it_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "tansu"
    broken.write_text("#!/bin/sh\necho the disk is on fire\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr(broker_module, "broker_binary", lambda: broken)
    with pytest.raises(BrokerError, match=r"(?s)code 3.*the disk is on fire"):
        await EmbeddedBroker().start()


async def test_a_broker_that_never_answers_is_an_error_and_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent, pid_file = tmp_path / "tansu", tmp_path / "pid"
    silent.write_text(f"#!/bin/sh\necho $$ > {pid_file}\necho thinking\nexec sleep 1000\n")
    silent.chmod(0o755)
    monkeypatch.setattr(broker_module, "broker_binary", lambda: silent)
    monkeypatch.setattr(broker_module, "_READY_TIMEOUT_S", 0.5)
    with pytest.raises(BrokerError, match=r"(?s)not ready.*thinking"):
        await EmbeddedBroker().start()
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)


async def test_a_port_taken_in_between_is_replaced_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ports = [taken.getsockname()[1], free_port()]
        monkeypatch.setattr(broker_module, "free_port", lambda: ports.pop(0))
        async with EmbeddedBroker() as broker:
            assert ports == []
            assert not broker.bootstrap_servers.endswith(f":{taken.getsockname()[1]}")


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the package's program would be: there is none yet."""
    program = tmp_path / binary_module.PACKAGE / "bin/tansu"
    program.parent.mkdir(parents=True)
    monkeypatch.setattr(resources, "files", lambda _: program.parent.parent)
    return program


@pytest.mark.usefixtures("installed")
async def test_a_platform_without_a_broker_gets_an_error_that_says_what_to_set() -> None:
    with pytest.raises(BrokerError, match="KAFKA_BOOTSTRAP_SERVERS"):
        await EmbeddedBroker().start()


async def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binary_module, "find_spec", lambda _: None)
    with pytest.raises(BrokerError, match=r"dispatchai\[embedded\].*KAFKA_BOOTSTRAP_SERVERS"):
        await EmbeddedBroker().start()


async def test_no_other_program_is_run_as_the_broker(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither one in the package's place, nor in the home folder, nor one that the environment or the path names."""
    ran = tmp_path / "ran"
    others = (installed, tmp_path / ".calfkit/bin/tansu-v0.6.0-510f3e2", tmp_path / "path/tansu")
    for other in others:
        other.parent.mkdir(parents=True, exist_ok=True)
        other.write_text(f"#!/bin/sh\ntouch {ran}\n")
        other.chmod(0o755)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CALF_TANSU_BIN", str(others[2]))
    monkeypatch.setenv("PATH", f"{others[2].parent}:{os.environ['PATH']}")
    with pytest.raises(BrokerError, match="SHA-256"):
        await EmbeddedBroker().start()
    assert not ran.exists()


async def test_the_home_folder_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    async with EmbeddedBroker():
        assert os.listdir(tmp_path) == []  # noqa: PTH208 - one call, at once


async def test_waiting_for_a_broker_names_the_address_and_the_failure() -> None:
    connection = KafkaConnection(f"127.0.0.1:{free_port()}")
    with pytest.raises(BrokerNotReadyError, match=rf"{connection.bootstrap_servers}.*ConnectionRefused"):
        await wait_until_ready(connection, 0.2)


async def test_the_key_decides_the_partition_on_both_brokers_alike(broker: KafkaConnection, topics: Topics) -> None:
    """aiokafka's partitioner is the client's: no broker changes it, and all of a call's records meet."""
    options = broker.client_options()
    call_id = b"v3:a-call-of-this-test"
    async with AIOKafkaProducer(**options, acks="all") as producer:
        sent = [await producer.send_and_wait(name, b"not a record", key=call_id) for name in ("call-events", "signals")]
    assert len({metadata.partition for metadata in sent}) == 1
