"""Apache Kafka on loopback: one node that is broker and controller, from jars that Maven fetches.

Decides the properties that one node needs and how its log folder is formatted. Callers add their own properties.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import re
import shutil
import subprocess
import uuid
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.embedded_broker import free_port
from dispatchai.kafka.readiness import BrokerNotReadyError, wait_until_ready
from dispatchai.process.child import Child

DIRECTORY: Final = Path(__file__).parent
LIBS: Final = DIRECTORY / "libs"

OLDEST_JAVA: Final = 17
"""Apache Kafka 4 needs it."""

MAVEN_TIMEOUT_S: Final = 300
"""43 MB; on a slow line."""

START_TIMEOUT_S: Final = 120.0
"""Three seconds on an idle machine; tests share theirs."""

GRACE_S: Final = 3.0
"""Seconds from SIGTERM to SIGKILL: the log folder is thrown away."""

QUICK_START: Final = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xshare:auto", "-Xmx512m")
"""JVM options for a short life on two cores: the fast compiler only, a collector without threads of its own."""

LOADED: Final = ("-Xmx1g",)
"""JVM options for a measurement: what Kafka's own start script gives a broker."""

_PROPERTIES: Final = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller_port}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
log.dirs={log_dir}
default.replication.factor=1
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
auto.create.topics.enable=false
group.initial.rebalance.delay.ms=0
"""
"""Kafka's defaults, but for what one node needs. A topic that nobody declared is an error."""


class KafkaUnavailableError(Exception):
    """Apache Kafka cannot be started on this machine. The message is one line that says what is missing."""


@dataclass(frozen=True, slots=True)
class Node:
    """One formatted node. `command` runs it, as often as it is asked to, on one log folder and one port."""

    command: tuple[str, ...]
    connection: KafkaConnection
    log_dir: Path

    @classmethod
    async def prepare(
        cls,
        folder: Path,
        *,
        jvm: Sequence[str] = QUICK_START,
        properties: str = "",
        format_options: Sequence[str] = (),
        **ports: object,
    ) -> Self:
        """A node with its files in `folder`, formatted and not running.

        `properties` come last, so they override; `{port}`, `{controller_port}` and the names of `ports` are filled
        in. Raises RuntimeError with Kafka's output if the folder cannot be formatted, and KafkaUnavailableError.
        """
        java = find_java()
        fetch_jars()
        port, log_dir = free_port(), folder / "log"
        values = {"port": port, "controller_port": free_port(), "log_dir": log_dir, **ports}
        file = folder / "server.properties"
        file.write_text((_PROPERTIES + properties).format(**values), encoding="utf-8")
        run = (java, *jvm, "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", f"{LIBS}/*")
        # "=" because an id may begin with a dash.
        cluster_id = "--cluster-id=" + base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        output: deque[str] = deque(maxlen=40)
        formatting = ("kafka.tools.StorageTool", "format", cluster_id, "-c", str(file), *format_options)
        async with Child([*run, *formatting], on_line=output.append) as child:
            if (code := await child.wait()) != 0:
                raise RuntimeError("\n".join([f"formatting Kafka's log folder ended with {code}", *output]))
        return cls((*run, "kafka.Kafka", str(file)), KafkaConnection(f"127.0.0.1:{port}"), log_dir)

    async def ready(self) -> None:
        """Return when the node answers. Raises BrokerNotReadyError."""
        await wait_until_ready(self.connection, START_TIMEOUT_S)

    @asynccontextmanager
    async def running(self, environment: Mapping[str, str] | None = None) -> AsyncIterator[Child]:
        """The node's process while this lasts. Raises RuntimeError with Kafka's output if it does not answer."""
        output: deque[str] = deque(maxlen=40)
        async with Child(self.command, env=environment, on_line=output.append, grace_s=GRACE_S) as child:
            try:
                await self.ready()
            except BrokerNotReadyError as error:
                raise RuntimeError("\n".join([str(error), *output])) from error
            yield child


def find_java() -> str:
    """A Java that can run Kafka. Raises KafkaUnavailableError."""
    java = shutil.which("java")
    if java is None:
        raise KafkaUnavailableError(f"java is not installed (needs {OLDEST_JAVA} or later)")
    said = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    version = re.search(r'version "(\d+)', said)
    if version is None or int(version[1]) < OLDEST_JAVA:
        found = said.partition("\n")[0] or "an unknown version"
        raise KafkaUnavailableError(f"needs Java {OLDEST_JAVA} or later, found {found}")
    return java


def fetch_jars() -> None:
    """Let Maven put the jars of `pom.xml` into `libs`, once. Raises KafkaUnavailableError."""
    wanted = hashlib.sha256((DIRECTORY / "pom.xml").read_bytes()).hexdigest()
    stamp = LIBS / "pom.sha256"
    LIBS.mkdir(exist_ok=True)
    # Two test runs in one checkout must not both write the folder.
    with (LIBS / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if stamp.exists() and stamp.read_text() == wanted:
            return
        maven = shutil.which("mvn")
        if maven is None:
            raise KafkaUnavailableError("mvn is not installed (it fetches Apache Kafka)")
        for jar in LIBS.glob("*.jar"):
            jar.unlink()
        try:
            done = subprocess.run(
                [maven, "-q", "-B", "dependency:copy-dependencies", f"-DoutputDirectory={LIBS}"],
                cwd=DIRECTORY,
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
