"""`dispatchai up`: one process of each kind on this machine, and an embedded broker where no Kafka is configured.

Decides what is started, in which order, and when it is restarted or stopped; nothing is left behind. The processes are
those of `dispatchai gateway`, `console`, `worker` and `speech`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
from aiokafka.errors import KafkaConnectionError, KafkaError

from dispatchai.cli.errors import CliError
from dispatchai.kafka.admin import apply
from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.embedded_broker import BrokerError, EmbeddedBroker
from dispatchai.kafka.errors import KafkaOperationError
from dispatchai.kafka.topics import Topics
from dispatchai.process.child import Child
from dispatchai.process.run_info import RunInfo
from dispatchai.settings import Settings
from dispatchai.simulator.account import AccountError, SimulatedAccount

READY_TIMEOUT_S: Final = 90.0
"""How long all processes together may take to be ready: a join takes about 10 s, a speech model a few seconds."""

READY_POLL_S: Final = 0.1
"""Pause between two requests to a process that is starting: a health endpoint does not announce its changes."""

RESTART_PAUSE_S: Final = 1.0
STABLE_AFTER_S: Final = 60.0
RESTARTS_IN_A_ROW: Final = 5
"""A process that fails is restarted. When it fails this often without having run for `STABLE_AFTER_S`, the run ends."""

EXIT_MISCONFIGURED: Final = 2
"""Exit code of a process that cannot run as configured: restarting it would not help."""

Say = Callable[[str], None]


class UpError(CliError):
    """The system could not be started or kept running. The message says what is wrong and what to do."""


@dataclass(frozen=True, slots=True)
class Part:
    """One process: its subcommand, and the URL that answers 200 once it is ready."""

    name: str
    ready_url: str


@asynccontextmanager
async def up(settings: Settings, say: Say) -> AsyncIterator[Running]:
    """Start the system, and stop it at the end of the block. Raises UpError, and TopicsFileError for `topics.yaml`."""
    async with AsyncExitStack() as stack:
        connection = await _broker(settings, say, stack)
        await _topics(connection, settings, say)
        run = RunInfo(
            gateway_url=f"http://{settings.gateway_host}:{settings.gateway_port}",
            ws_url=f"ws://{settings.gateway_host}:{settings.gateway_port}/ws",
            console_url=f"http://{settings.console_host}:{settings.console_port}",
            carrier_port=settings.simulated_carrier_port,
            bootstrap_servers=connection.bootstrap_servers,
        )
        running = Running(run, _environment(settings, connection), say)
        parts = (
            Part("gateway", f"{run.gateway_url}/health/ready"),
            Part("console", f"{run.console_url}/health/ready"),
            Part("worker", f"http://{settings.console_host}:{settings.worker_port}/health/ready"),
            Part("speech", f"http://{settings.console_host}:{settings.speech_port}/health/ready"),
        )
        stack.push_async_callback(running.stop)
        await running.start(parts)
        run.save(settings.state_dir)
        stack.callback(RunInfo.remove, settings.state_dir)
        yield running


async def _broker(settings: Settings, say: Say, stack: AsyncExitStack) -> KafkaConnection:
    if settings.kafka_bootstrap_servers:
        say(f"Kafka at {settings.kafka_bootstrap_servers}")
        return settings.kafka()
    say("KAFKA_BOOTSTRAP_SERVERS is not set: starting the embedded broker (in memory)")
    try:
        broker = await stack.enter_async_context(EmbeddedBroker())
    except BrokerError as error:
        raise UpError(str(error)) from error
    return settings.kafka(broker.bootstrap_servers)


async def _topics(connection: KafkaConnection, settings: Settings, say: Say) -> None:
    topics = Topics.load(settings.topics_file)
    try:
        report = await apply(connection, topics, settings.kafka_replication_factor)
    except (KafkaOperationError, KafkaError, OSError) as error:
        raise UpError(await explain(connection, error)) from error
    if report.created:
        say(f"{len(report.created)} topics created")
    for drift in report.drift:
        say(f"drift: {drift.topic}: {drift.what} is {drift.found}, declared {drift.declared}")


async def explain(connection: KafkaConnection, error: Exception) -> str:
    """Why a request to Kafka failed with `error`. Probes the brokers, because Kafka's clients do not report why."""
    from dispatchai.cli.doctor.kafka import refusal
    from dispatchai.cli.doctor.result import Limits

    match error:
        case KafkaConnectionError():
            return await refusal(connection, Limits()) or (
                f"no Kafka answers at {connection.bootstrap_servers}: check KAFKA_BOOTSTRAP_SERVERS, that the brokers "
                "run, and KAFKA_SECURITY_PROTOCOL with its SASL and TLS settings"
            )
        case _:
            return f"Kafka at {connection.bootstrap_servers}: {error}"


def _environment(settings: Settings, connection: KafkaConnection) -> dict[str, str]:
    """The environment of the processes: that of this process, the broker's address and, where no Telnyx is
    configured, the simulated carrier's keys."""
    environment = dict(os.environ)
    environment["KAFKA_BOOTSTRAP_SERVERS"] = connection.bootstrap_servers
    environment["LOG_LEVEL"] = settings.log_level
    environment["KAFKA_IS_EMBEDDED"] = str(connection.embedded).lower()
    if settings.carrier_is_simulated:
        try:
            account = SimulatedAccount.load_or_create(settings.state_dir)
        except AccountError as error:
            raise UpError(str(error)) from error
        if not settings.telnyx_public_key:
            environment["TELNYX_PUBLIC_KEY"] = account.public_key
        if not settings.stream_token_secret.get_secret_value():
            environment["STREAM_TOKEN_SECRET"] = account.stream_token_secret
    return environment


class Running:
    """The processes of a run. Each is restarted when it fails."""

    def __init__(self, info: RunInfo, environment: Mapping[str, str], say: Say) -> None:
        self.info = info
        self._environment = environment
        self._say = say
        self._watchers: list[asyncio.Task[None]] = []
        self._failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def start(self, parts: tuple[Part, ...]) -> None:
        """Start all parts, wait until each is ready and report it. Raises UpError."""
        self._say(f"starting {', '.join(part.name for part in parts)}")
        started = time.monotonic()
        self._watchers = [asyncio.create_task(self._watch(part)) for part in parts]
        waiting = {part.name: asyncio.create_task(self._report_when_ready(part, started)) for part in parts}
        failed = asyncio.create_task(self.failure())
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                while not all(task.done() for task in waiting.values()):
                    pending = [task for task in waiting.values() if not task.done()]
                    waited: list[asyncio.Task[Any]] = [*pending, failed]
                    await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
                    if failed.done():
                        raise UpError(failed.result())
        except TimeoutError:
            late = ", ".join(name for name, task in waiting.items() if not task.done() or task.cancelled())
            raise UpError(
                f"not ready after {READY_TIMEOUT_S:.0f} s: {late}. Its log lines are above; LOG_LEVEL=DEBUG logs more."
            ) from None
        finally:
            for task in (failed, *waiting.values()):
                task.cancel()
            await asyncio.gather(failed, *waiting.values(), return_exceptions=True)

    async def _report_when_ready(self, part: Part, started: float) -> None:
        await _ready(part)
        self._say(f"  {part.name} is ready ({time.monotonic() - started:.0f} s)")

    async def failure(self) -> str:
        """Wait until a part has failed for good. Returns the message about it."""
        return await asyncio.shield(self._failed)

    async def stop(self) -> None:
        """Stop all parts, the gateway first: the others then still process what it accepted."""
        for watcher in self._watchers:
            watcher.cancel()
            with suppress(asyncio.CancelledError):
                await watcher

    async def _watch(self, part: Part) -> None:
        """Keep `part` running until cancelled, then stop it."""
        failures = 0
        while not self._failed.done():
            child = Child([sys.executable, "-m", "dispatchai", part.name], env=self._environment)
            started = time.monotonic()
            await child.start()
            try:
                code = await child.wait()
            finally:
                await child.stop()
            failures = 0 if time.monotonic() - started > STABLE_AFTER_S else failures + 1
            if failures >= RESTARTS_IN_A_ROW or (code == EXIT_MISCONFIGURED):
                if not self._failed.done():
                    self._failed.set_result(f"the {part.name} ended with code {code}; its log lines are above")
                return
            self._say(f"the {part.name} ended with code {code}: restarting it")
            await asyncio.sleep(RESTART_PAUSE_S)


async def _ready(part: Part) -> None:
    timeout = aiohttp.ClientTimeout(total=2.0)
    async with aiohttp.ClientSession(timeout=timeout) as http:
        while True:
            with suppress(aiohttp.ClientError, TimeoutError):
                async with http.get(part.ready_url) as response:
                    if response.status == 200:
                        return
            await asyncio.sleep(READY_POLL_S)


async def until_signal() -> None:
    """Wait for Ctrl-C or SIGTERM."""
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, asked.set)
    await asked.wait()


async def supervise(body: Coroutine[Any, Any, int], say: Say) -> int:
    """Run `body` until it returns, or until Ctrl-C or SIGTERM, at any moment. Returns the exit code.

    A signal cancels `body`, whose contexts then stop what they started; the exit code is 0.
    """
    running = asyncio.create_task(body)
    asked = asyncio.create_task(until_signal())
    try:
        await asyncio.wait([running, asked], return_when=asyncio.FIRST_COMPLETED)
        if not running.done():
            say("stopping")
            running.cancel()
        return await running
    except asyncio.CancelledError:
        return 0
    finally:
        asked.cancel()
