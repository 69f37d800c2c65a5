"""The processes of a run, each of which can be killed, frozen, started again or asked to leave.

Decides how a process is stopped and started, and keeps its output. `schedule` decides when that happens.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final
from uuid import uuid4

import aiohttp

from dispatchai.kafka.admin import apply
from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.embedded_broker import EmbeddedBroker, free_port
from dispatchai.kafka.topics import Topics
from dispatchai.process.child import Child
from dispatchai.settings import Settings
from dispatchai.simulator import SimulatedAccount
from tests.crash.kafka import Kafka
from tests.crash.network import Line
from tests.crash.schedule import ON_THE_LINE, WORKERS, Victim
from tests.support.processes import MARK

RESTART_PAUSE_S: Final = 1.0
"""Pause before a process that ended by itself is started again, as by `dispatchai up`."""

LEAVE_GRACE_S: Final = 10.0
"""How long a process may take from SIGTERM to its end. The program promises to need no longer."""

READY_S: Final = 120.0
"""How long all processes together may take to start, on a busy machine."""

PROBE_S: Final = 0.1
"""Pause between two readiness checks of a starting process."""

TRACE_SETTINGS: Final = {"LOG_LEVEL": "DEBUG", "LOG_FORMAT": "console"}
"""The engine logs its commits, seeks and assignments at this level."""

CALL_DEADLINE_S: Final = 20.0
"""Shorter than the default, because each run waits for it: a call whose gateway was killed ends in no other way."""


class Process:
    """A process that is started again whenever it ends, until it leaves or is stopped. Use as `async with`.

    The output of all its runs goes to the file `log`.
    """

    def __init__(self, name: str, argv: Sequence[str | Path], environment: Mapping[str, str], log: Path) -> None:
        self.name = name
        self.exits: list[str] = []
        """How it ended each time that it ended by itself."""
        self.left_badly: str | None = None
        """How it ended after it was asked to leave, if that was wrong."""
        self._argv = argv
        self._environment = environment
        self._log = log
        self._child: Child | None = None
        self._down_s: float | None = None
        self._leaving = False
        self._has_said = False
        self._running = asyncio.Event()
        self._life: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start it. Returns when it runs, and is not ready yet."""
        self._life = asyncio.create_task(self._live(), name=self.name)
        running = asyncio.create_task(self._running.wait())
        await asyncio.wait([running, self._life], return_when=asyncio.FIRST_COMPLETED)
        running.cancel()
        if self._life.done():
            self._life.result()

    async def kill(self, down_s: float) -> None:
        """Send SIGKILL, and start it again `down_s` later."""
        if self._running.is_set() and self._child is not None:
            self._down_s = down_s
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._child.pid, signal.SIGKILL)
            await self._child.wait()

    async def freeze(self, lasts_s: float) -> None:
        """Send SIGSTOP, and SIGCONT after `lasts_s`."""
        if not self._running.is_set() or self._child is None:
            return
        pid = self._child.pid
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            try:
                await asyncio.sleep(lasts_s)
            finally:
                os.kill(pid, signal.SIGCONT)

    async def restart(self, down_s: float) -> None:
        """Send SIGTERM, and start it again `down_s` after its end."""
        if self._running.is_set() and self._child is not None:
            self._down_s = down_s
            await self._end_in_order(self._child)

    async def leave(self) -> None:
        """Send SIGTERM. It is not started again."""
        self._leaving = True
        if self._child is not None:
            await self._end_in_order(self._child)

    async def _end_in_order(self, child: Child) -> None:
        began = self._has_said
        code = await child.stop(LEAVE_GRACE_S)
        # A process that is asked before it has set its handlers ends as any program does.
        if code != 0 and (began or code != -signal.SIGTERM):
            self.left_badly = f"{self.name} was asked to end and ended with {code}"

    async def stop(self) -> None:
        """End it in whatever state it is."""
        if self._life is not None:
            self._life.cancel()
            await asyncio.gather(self._life, return_exceptions=True)

    async def __aenter__(self) -> Process:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def _live(self) -> None:
        with self._log.open("a", encoding="utf-8") as log:

            def write(line: str) -> None:
                self._has_said = True
                log.write(f"{line}\n")

            while not self._leaving:
                self._down_s = None
                child = self._child = Child(self._argv, env=self._environment, on_line=write)
                await child.start()
                write(f"==== {self.name} runs as process {child.pid}")
                self._has_said = False
                self._running.set()
                try:
                    code = await child.wait()
                finally:
                    self._running.clear()
                    await child.stop(0.0)
                    write(f"==== {self.name} ended")
                if self._leaving:
                    return
                if self._down_s is None:
                    self.exits.append(f"{self.name} ended by itself with code {code}")
                await asyncio.sleep(RESTART_PAUSE_S if self._down_s is None else self._down_s)


class System:
    """All processes of a run: the broker, a gateway, two workers and one that may join, speech."""

    def __init__(
        self,
        connection: KafkaConnection,
        processes: Mapping[Victim, Process],
        account: SimulatedAccount,
        *,
        line: Line | None,
        gateway_url: str,
        carrier_port: int,
        ready_urls: Mapping[Victim, str],
    ) -> None:
        self.connection = connection
        self.processes = processes
        self.account = account
        self.line = line
        self.gateway_url = gateway_url
        self.carrier_port = carrier_port
        self._ready_urls = ready_urls

    @property
    def exits(self) -> list[str]:
        """How processes ended by themselves."""
        return [text for process in self.processes.values() for text in process.exits]

    @property
    def bad_leaves(self) -> list[str]:
        """What went wrong with processes that were asked to leave."""
        return [text for process in self.processes.values() if (text := process.left_badly) is not None]

    async def ready(self) -> None:
        """Wait until all started processes are ready. Raises TimeoutError, or RuntimeError if one ended instead."""
        async with asyncio.timeout(READY_S), aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2.0)) as http:
            for victim, url in self._ready_urls.items():
                while victim is not Victim.WORKER_3 and not await _says_ready(http, url):
                    if self.exits:
                        raise RuntimeError(f"{self.exits[0]} at the start; its log says why")
                    await asyncio.sleep(PROBE_S)

    async def gateway_waits(self) -> int | None:
        """The number of records that the gateway has and Kafka does not; None while the gateway does not answer."""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2.0)) as http:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                async with http.get(f"{self.gateway_url}/health/live") as response:
                    answer = await response.json()
                    return int(answer["metrics"]["records_waiting"])
        return None


async def _says_ready(http: aiohttp.ClientSession, url: str) -> bool:
    with contextlib.suppress(aiohttp.ClientError, TimeoutError):
        async with http.get(url) as response:
            return response.status == 200
    return False


@asynccontextmanager
async def system(folder: Path, *, apache: bool, network: bool, unsafe: str | None) -> AsyncIterator[System]:
    """Start a system, with its logs in the existing `folder`. With `network` the network of one worker can be cut.

    Raises RuntimeError or TimeoutError if it does not become ready.
    """
    account = SimulatedAccount.load_or_create(folder / "state")
    mark = {MARK: uuid4().hex}
    async with contextlib.AsyncExitStack() as stack:
        processes: dict[Victim, Process] = {}
        line: Line | None = None
        if apache:
            kafka = await Kafka.prepare(folder)
            broker = Process("broker", kafka.command, {**os.environ, **mark}, folder / "broker.log")
            processes[Victim.BROKER] = await stack.enter_async_context(broker)
            await kafka.ready()
            connection = kafka.connection
            if network:
                line = kafka.line
                await stack.enter_async_context(line.open())
        else:
            connection = (await stack.enter_async_context(EmbeddedBroker())).connection
        await apply(connection, Topics.load(), replication=1)
        gateway_port, carrier_port = free_port(), free_port()
        common = {
            **{name: value for name, value in os.environ.items() if name.lower() not in Settings.model_fields},
            **mark,
            **TRACE_SETTINGS,
            "KAFKA_BOOTSTRAP_SERVERS": connection.bootstrap_servers,
            "KAFKA_IS_EMBEDDED": str(connection.embedded).lower(),
            "GATEWAY_PORT": str(gateway_port),
            "SIMULATED_CARRIER_PORT": str(carrier_port),
            "TELNYX_PUBLIC_KEY": account.public_key,
            "STREAM_TOKEN_SECRET": account.stream_token_secret,
            "SPEECH_ENGINE": "scripted",
            "CALL_DEADLINE_S": str(CALL_DEADLINE_S),
        }
        ready_urls = {Victim.GATEWAY: f"http://127.0.0.1:{gateway_port}/health/ready"}
        for victim in (Victim.GATEWAY, *sorted(WORKERS), Victim.SPEECH):
            port, state = free_port(), folder / "state" / victim
            state.mkdir()
            environment = {
                **common,
                "WORKER_PORT" if victim in WORKERS else "SPEECH_PORT": str(port),
                "STATE_DIR": str(state),
            }
            if line is not None and victim is ON_THE_LINE:
                environment["KAFKA_BOOTSTRAP_SERVERS"] = f"127.0.0.1:{line.port}"
            command = "worker" if victim in WORKERS else str(victim)
            program = ["tests.crash.unsafe", unsafe] if unsafe else ["dispatchai"]
            argv = [sys.executable, "-m", *program, command]
            process = processes[victim] = Process(victim, argv, environment, folder / f"{victim}.log")
            stack.push_async_callback(process.stop)
            ready_urls.setdefault(victim, f"http://127.0.0.1:{port}/health/ready")
            if victim is not Victim.WORKER_3:
                await process.start()
        running = System(
            connection,
            processes,
            account,
            line=line,
            gateway_url=f"http://127.0.0.1:{gateway_port}",
            carrier_port=carrier_port,
            ready_urls=ready_urls,
        )
        await running.ready()
        yield running
