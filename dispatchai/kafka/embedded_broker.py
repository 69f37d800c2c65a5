"""The embedded broker: Tansu, which implements Kafka's protocol and keeps everything in memory.

Decides how it is started and when it is ready; it dies with its parent. It is for trying out and for tests: its records
are gone when it stops. `admin` creates the topics.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import random
import socket
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from dispatchai.kafka.broker_binary import BrokerBinaryError, broker_binary
from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.errors import KafkaOperationError
from dispatchai.kafka.readiness import BrokerNotReadyError, wait_until_ready
from dispatchai.process.child import Child, ChildError

LOOPBACK: Final = "127.0.0.1"

_READY_TIMEOUT_S: Final = 30.0
"""Tansu is ready in a tenth of a second."""

_PORT_ATTEMPTS: Final = 3
"""Another program can take a free port before the broker binds it. Then another port is tried."""

_KEPT_LINES: Final = 40
"""Lines of the broker's output that an error message shows."""

_GRACE_S: Final = 2.0
"""Seconds from SIGTERM to SIGKILL: the broker has nothing to save."""


class BrokerError(KafkaOperationError):
    """The embedded broker could not be started. The message holds the last lines of its output."""


PORTS: Final = range(20_000, 32_768)
"""Below the ports that Linux, macOS and Windows use for outgoing connections by default."""


def free_port() -> int:
    """A TCP port of the loopback address that is free now. No outgoing connection will take it before it is used.

    Raises OSError if a thousand ports were tried and all are taken.
    """
    for port in random.sample(PORTS, 1000):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((LOOPBACK, port))
            return port
    raise OSError(errno.EADDRINUSE, f"none of 1000 ports from {PORTS.start} to {PORTS.stop - 1} is free")


class EmbeddedBroker:
    """One broker on a free port of the loopback address. It lives as long as this process at most.

    Use `async with EmbeddedBroker() as broker:`, or `start` and `stop`. Its topics are gone when it stops.
    """

    def __init__(self) -> None:
        self._child: Child | None = None
        self._port: int | None = None
        self._output: deque[str] = deque(maxlen=_KEPT_LINES)

    @property
    def bootstrap_servers(self) -> str:
        """``127.0.0.1:port``. Raises RuntimeError while the broker is not running."""
        if self._port is None:
            raise RuntimeError("the embedded broker is not running")
        return f"{LOOPBACK}:{self._port}"

    @property
    def connection(self) -> KafkaConnection:
        """How clients connect to the broker. Raises RuntimeError while it is not running."""
        return KafkaConnection(self.bootstrap_servers, embedded=True)

    @property
    def pid(self) -> int:
        """Process id of the broker. Raises RuntimeError while it is not running."""
        if self._child is None:
            raise RuntimeError("the embedded broker is not running")
        return self._child.pid

    async def start(self) -> None:
        """Start the broker and return once it answers. Raises BrokerError if it does not."""
        if self._child is not None:
            raise RuntimeError("the embedded broker is already running")
        try:
            binary = await asyncio.to_thread(broker_binary)
        except BrokerBinaryError as error:
            raise BrokerError(str(error)) from error
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            try:
                await self._start_at(binary, free_port())
            except BrokerError:
                if attempt == _PORT_ATTEMPTS or not self._port_was_taken():
                    raise
            else:
                return

    async def _start_at(self, binary: Path, port: int) -> None:
        url = f"tcp://{LOOPBACK}:{port}"
        # The environment is empty because Tansu would read LISTENER_URL, STORAGE_ENGINE and other settings from it.
        child = Child(
            [
                *(binary, "broker"),
                *("--listener-url", url),
                *("--advertised-listener-url", url),
                *("--storage-engine", "memory://tansu/"),
            ],
            env={},
            on_line=self._output.append,
            grace_s=_GRACE_S,
        )
        self._output.clear()
        try:
            await child.start()
        except ChildError as error:
            raise BrokerError(f"the embedded broker did not start: {error}") from error
        ready = asyncio.create_task(wait_until_ready(KafkaConnection(f"{LOOPBACK}:{port}"), _READY_TIMEOUT_S))
        ended = asyncio.create_task(child.wait())
        try:
            await asyncio.wait([ready, ended], return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                raise BrokerError(self._with_output(f"the embedded broker ended with code {ended.result()}"))
            await ready
        except BrokerNotReadyError as error:
            await child.stop()
            raise BrokerError(self._with_output(f"the embedded broker is not ready: {error}")) from error
        except BaseException:
            await child.stop()
            raise
        finally:
            for task in (ready, ended):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, BrokerNotReadyError):
                    await task
        self._child, self._port = child, port

    async def wait(self) -> int:
        """Wait until the broker ends, by itself or by `stop`. Returns its exit code."""
        if self._child is None:
            raise RuntimeError("the embedded broker is not running")
        return await self._child.wait()

    async def stop(self) -> None:
        """Stop the broker and wait for its end. Does nothing if it is not running."""
        child, self._child, self._port = self._child, None, None
        if child is not None:
            await child.stop()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    def _port_was_taken(self) -> bool:
        return any("address already in use" in line.lower() or "AddrInUse" in line for line in self._output)

    def _with_output(self, message: str) -> str:
        return "\n".join([message + "; its last output:", *(f"  {line}" for line in self._output)])
