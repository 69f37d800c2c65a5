"""What all tests share: the two brokers that the product must work on, and the project's topics on them.

The embedded broker and a real Apache Kafka (fetched by Maven, started without Docker) each start when a test first
asks for them and stop with the session; killed with pytest, they die with it.
"""

from __future__ import annotations

import asyncio
import base64
import datetime
import fcntl
import hashlib
import ipaddress
import logging
import os
import re
import shutil
import subprocess
import threading
import uuid
from collections import deque
from collections.abc import Coroutine, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import hypothesis
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.embedded_broker import BrokerNotReadyError, EmbeddedBroker, free_port, wait_until_ready
from dispatchai.kafka.topics import Topics, apply
from dispatchai.process.child import Child
from dispatchai.settings import Settings

T = TypeVar("T")

KAFKA_DIR = Path(__file__).parent / "kafka"
KAFKA_LIBS = KAFKA_DIR / "libs"

KAFKA_OLDEST_JAVA = 17
"""Apache Kafka 4 needs it."""

KAFKA_START_TIMEOUT_S = 120.0
"""Three seconds on an idle machine; tests share theirs."""

KAFKA_GRACE_S = 3.0
"""Seconds from SIGTERM to SIGKILL: the log folder is thrown away."""

KAFKA_USER, KAFKA_PASSWORD = "dispatchai", "for-tests-only"

MAVEN_TIMEOUT_S = 300
"""43 MB; on a slow line."""

# Generated examples take as long as the machine's other work lets them: no deadline on one. The same ones each time
# in CI, so that a failure there can be repeated.
hypothesis.settings.register_profile("project", deadline=None, derandomize=bool(os.environ.get("CI")))
hypothesis.settings.load_profile("project")

_LEFT_OUT = " left out: "


def leave_out(what: str, reason: str, required_by: str) -> NoReturn:
    """Skip a test for want of `what`, and say so in the summary. In CI, or with `required_by` set to 1, fail it."""
    if os.environ.get("CI") or os.environ.get(required_by) == "1":
        pytest.fail(f"{what} is required here: {reason}", pytrace=False)
    pytest.skip(f"{what}{_LEFT_OUT}{reason}")


def pytest_configure() -> None:
    """Tests see the defaults: neither the caller's environment nor a `.env` file reaches the settings."""
    for name in Settings.model_fields:
        os.environ.pop(name.upper(), None)
    Settings.model_config["env_file"] = None


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say in the summary what could not be tested on this machine. Tests may have run in other processes than this."""
    reasons = {report.longrepr[2] for report in terminalreporter.stats.get("skipped", [])}
    for reason in sorted(reason for reason in reasons if _LEFT_OUT in reason):
        terminalreporter.write_line(reason.removeprefix("Skipped: "), yellow=True)


class Background:
    """An event loop in a thread: it holds what lives longer than a test, whatever loops the tests have."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="brokers", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run `coroutine` in the thread and wait for it."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def close(self) -> None:
        """End the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class KafkaUnavailableError(Exception):
    """Apache Kafka cannot be started on this machine. The message is one line that says what is missing."""


class Brokers:
    """Starts each broker when it is first asked for, and applies the topics to it once."""

    def __init__(self, background: Background, folder: Path) -> None:
        self._background = background
        self._folder = folder
        self._running = AsyncExitStack()
        self._connections: dict[str, KafkaConnection] = {}
        self._unavailable: KafkaUnavailableError | None = None
        self._topics: dict[str, Topics] = {}

    def connection(self, name: str) -> KafkaConnection:
        """The broker `name`, running. Raises KafkaUnavailableError."""
        if name not in self._connections:
            match name:
                case "embedded":
                    embedded = self._background.run(self._running.enter_async_context(EmbeddedBroker()))
                    self._connections[name] = embedded.connection
                case "apache-kafka":
                    if self._unavailable is not None:
                        raise self._unavailable
                    try:
                        java = find_java()
                        fetch_kafka()
                    except KafkaUnavailableError as error:
                        self._unavailable = error
                        raise
                    self._connections[name] = self._background.run(self._start_kafka(java))
                case _:
                    raise ValueError(f"no broker is called {name}")
        return self._connections[name]

    def topics(self, connection: KafkaConnection) -> Topics:
        """The project's topics, present on the broker of `connection`."""
        key = connection.bootstrap_servers
        if key not in self._topics:
            topics = Topics.load()
            self._background.run(apply(connection, topics, replication=1))
            self._topics[key] = topics
        return self._topics[key]

    def stop(self) -> None:
        """Stop what was started."""
        self._background.run(self._running.aclose())

    def secured(self) -> KafkaConnection:
        """Apache Kafka by its other door: TLS with certificates on both sides, and SASL."""
        self.connection("apache-kafka")
        return self._connections["secured"]

    async def _start_kafka(self, java: str) -> KafkaConnection:
        port, controller_port, secure_port = free_port(), free_port(), free_port()
        pems = make_pems(self._folder)
        properties = self._folder / "server.properties"
        properties.write_text(
            server_properties(port, controller_port, secure_port, self._folder / "log", pems), encoding="utf-8"
        )
        login = f"SCRAM-SHA-512=[name={KAFKA_USER},password={KAFKA_PASSWORD}]"
        # Short-lived on two cores: the fast compiler only, the collector without threads of its own.
        command = [java, "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xshare:auto"]
        command += ["-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", f"{KAFKA_LIBS}/*"]
        output: deque[str] = deque(maxlen=40)
        formatting = Child(
            [
                *(*command, "kafka.tools.StorageTool", "format"),
                *(cluster_id_option(), "-c", properties, "--add-scram", login),
            ],
            on_line=output.append,
        )
        async with formatting:
            code = await formatting.wait()
        if code != 0:
            raise RuntimeError("\n".join([f"formatting Kafka's log folder ended with {code}", *output]))
        kafka = Child([*command, "-Xmx512m", "kafka.Kafka", properties], on_line=output.append, grace_s=KAFKA_GRACE_S)
        await self._running.enter_async_context(kafka)
        connection = KafkaConnection(f"127.0.0.1:{port}")
        try:
            await wait_until_ready(connection, KAFKA_START_TIMEOUT_S)
        except BrokerNotReadyError as error:
            raise RuntimeError("\n".join([str(error), *output])) from error
        self._connections["secured"] = KafkaConnection(
            f"127.0.0.1:{secure_port}",
            "SASL_SSL",
            "SCRAM-SHA-512",
            sasl_username=KAFKA_USER,
            sasl_password=KAFKA_PASSWORD,
            ssl_ca_file=pems.authority,
            ssl_cert_file=pems.client_certificate,
            ssl_key_file=pems.client_key,
        )
        return connection


@dataclass(frozen=True, slots=True)
class Pems:
    """Files of TLS, in PEM: an authority, and what it signed. `server` holds the key, then its certificate."""

    authority: Path
    server: Path
    client_certificate: Path
    client_key: Path


def make_pems(folder: Path) -> Pems:
    """New keys, certified for 127.0.0.1 for a day."""
    folder.mkdir(exist_ok=True)
    now = datetime.datetime.now(datetime.UTC)

    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    authority_key = ec.generate_private_key(ec.SECP256R1())

    def certificate(subject: str, key: ec.EllipticCurvePrivateKey, *, is_authority: bool) -> bytes:
        loopback = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        return (
            x509.CertificateBuilder()
            .subject_name(name(subject))
            .issuer_name(name("authority"))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
            .add_extension(loopback, critical=False)
            .sign(authority_key, hashes.SHA256())
            .public_bytes(serialization.Encoding.PEM)
        )

    def pem(key: ec.EllipticCurvePrivateKey) -> bytes:
        return key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    server_key, client_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    pems = Pems(folder / "authority.pem", folder / "server.pem", folder / "client.pem", folder / "client-key.pem")
    pems.authority.write_bytes(certificate("authority", authority_key, is_authority=True))
    pems.server.write_bytes(pem(server_key) + certificate("server", server_key, is_authority=False))
    pems.client_certificate.write_bytes(certificate("client", client_key, is_authority=False))
    pems.client_key.write_bytes(pem(client_key))
    return pems


def server_properties(port: int, controller_port: int, secure_port: int, log_dir: Path, pems: Pems) -> str:
    """One node that is broker and controller, all of it on loopback, hurried where a test would wait."""
    return f"""\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller_port}
listeners=PLAINTEXT://127.0.0.1:{port},SECURE://127.0.0.1:{secure_port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port},SECURE://127.0.0.1:{secure_port}
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SECURE:SASL_SSL
listener.name.secure.sasl.enabled.mechanisms=SCRAM-SHA-512
listener.name.secure.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.secure.ssl.client.auth=required
listener.name.secure.ssl.keystore.type=PEM
listener.name.secure.ssl.keystore.location={pems.server}
listener.name.secure.ssl.truststore.type=PEM
listener.name.secure.ssl.truststore.location={pems.authority}
log.dirs={log_dir}
# One node holds the only copy of everything.
default.replication.factor=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
# A topic that nobody declared is an error in a test.
auto.create.topics.enable=false
# Groups form and notice the death of a member at once; the log is cleaned while a test waits for it.
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
log.cleaner.backoff.ms=500
log.cleaner.dedupe.buffer.size=16777216
# Records of tests are dated as a test needs it: none is deleted for its age while one reads it.
log.initial.task.delay.ms=86400000
log.retention.check.interval.ms=86400000
"""


def find_java() -> str:
    """A Java that can run Kafka. Raises KafkaUnavailableError."""
    java = shutil.which("java")
    if java is None:
        raise KafkaUnavailableError(f"java is not installed (needs {KAFKA_OLDEST_JAVA} or later)")
    said = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    version = re.search(r'version "(\d+)', said)
    if version is None or int(version[1]) < KAFKA_OLDEST_JAVA:
        found = said.partition("\n")[0] or "an unknown version"
        raise KafkaUnavailableError(f"needs Java {KAFKA_OLDEST_JAVA} or later, found {found}")
    return java


def cluster_id_option() -> str:
    """A new cluster's id, for Kafka's storage tool. With "=", because an id may begin with a dash."""
    return "--cluster-id=" + base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")


def fetch_kafka() -> None:
    """Let Maven put the jars of tests/kafka/pom.xml into tests/kafka/libs, once. Raises KafkaUnavailableError."""
    wanted = hashlib.sha256((KAFKA_DIR / "pom.xml").read_bytes()).hexdigest()
    stamp = KAFKA_LIBS / "pom.sha256"
    KAFKA_LIBS.mkdir(exist_ok=True)
    # Two test runs in one checkout must not both write the folder.
    with (KAFKA_LIBS / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if stamp.exists() and stamp.read_text() == wanted:
            return
        maven = shutil.which("mvn")
        if maven is None:
            raise KafkaUnavailableError("mvn is not installed (it fetches Apache Kafka)")
        for jar in KAFKA_LIBS.glob("*.jar"):
            jar.unlink()
        try:
            done = subprocess.run(
                [maven, "-q", "-B", "dependency:copy-dependencies", f"-DoutputDirectory={KAFKA_LIBS}"],
                cwd=KAFKA_DIR,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                timeout=MAVEN_TIMEOUT_S,
            )
        except subprocess.TimeoutExpired:
            raise KafkaUnavailableError(f"mvn did not fetch Apache Kafka in {MAVEN_TIMEOUT_S} s") from None
        if done.returncode != 0:
            lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
            raise KafkaUnavailableError(f"mvn could not fetch Apache Kafka: {lines[0] if lines else 'no reason given'}")
        stamp.write_text(wanted)


@pytest.fixture(autouse=True)
def log_level() -> Iterator[None]:
    """A command that a test runs in this process sets its log level: for the next test it is what it was."""
    root = logging.getLogger()
    level = root.level
    yield
    root.setLevel(level)


@pytest.fixture(scope="session")
def brokers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Brokers]:
    """The brokers of this session."""
    background = Background()
    brokers = Brokers(background, tmp_path_factory.mktemp("kafka"))
    try:
        yield brokers
    finally:
        brokers.stop()
        background.close()


@pytest.fixture(scope="session", params=["embedded", "apache-kafka"])
def broker(request: pytest.FixtureRequest, brokers: Brokers) -> KafkaConnection:
    """A running broker: the test runs once on each. What other tests wrote is on it."""
    try:
        return brokers.connection(request.param)
    except KafkaUnavailableError as error:
        reason = str(error)
    leave_out("Apache Kafka", reason, "DISPATCHAI_REQUIRE_KAFKA")


@pytest.fixture
def secured_kafka(brokers: Brokers) -> KafkaConnection:
    """Apache Kafka by a listener that asks for a certificate, a name and a password."""
    try:
        return brokers.secured()
    except KafkaUnavailableError as error:
        reason = str(error)
    leave_out("Apache Kafka", reason, "DISPATCHAI_REQUIRE_KAFKA")


@pytest.fixture
def topics(broker: KafkaConnection, brokers: Brokers) -> Topics:
    """The project's topics, present on `broker`. They are shared: a test uses call ids of its own."""
    return brokers.topics(broker)
