"""Six processes that can be restarted one by one: two workers, two speech processes, two gateways behind a proxy.

Decides how a process is ended, started again and found ready, as docs/deploy.md prescribes. `rolling_restart` decides
what happens meanwhile.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.embedded_broker import free_port
from dispatchai.process.child import Child
from dispatchai.simulator import SimulatedAccount
from tests.deploy.monitoring import METRIC, alerts
from tests.support.front import front
from tests.support.processes import environment, rounds

PROCESSES: Final = ("worker-1", "worker-2", "speech-1", "speech-2", "gateway-1", "gateway-2")
"""In the order of docs/deploy.md, section 13: workers, then speech processes, then gateways."""

GRACE_S: Final = 20.0
"""The systemd units' TimeoutStopSec: SIGKILL follows then."""

POLL_S: Final = 0.1

READY_S: Final = 120.0
"""How long a process may take to start, on a busy machine."""

CALL_DEADLINE_S: Final = 20.0
"""Shorter than the default, because each run waits for it."""

SOCKETS_OPEN: Final = "dispatchai_gateway_sockets_open"


ALERT: Final = "ProcessRestarts"
"""The alert that no restart in order may raise."""


def unclean_starts() -> str:
    """The metric by which that alert decides."""
    (name,) = set(METRIC.findall(alerts()[ALERT]["expr"]))
    return str(name)


@dataclass(frozen=True, slots=True)
class Restart:
    """How a process was restarted. Times in seconds: from the signal to its end, from its start until it was ready."""

    process: str
    killed: bool
    at: float
    """When the signal was sent, in seconds since the epoch."""
    exit_code: int
    stop_s: float
    ready_s: float


class Process:
    """One process of the program, under its name in PROCESSES. Its output goes to the file `log`."""

    def __init__(self, name: str, settings: Mapping[str, str], log: Path, http: aiohttp.ClientSession) -> None:
        self.name = name
        self._command = name.partition("-")[0]
        self._settings = settings
        self._log = log
        self._http = http
        self.address = f"127.0.0.1:{settings[f'{self._command.upper()}_PORT']}"
        self._url = f"http://{self.address}"
        self._child: Child | None = None

    async def start(self) -> float:
        """Start it. Returns the seconds until it was ready. Raises RuntimeError if it ends instead, or TimeoutError."""
        began = time.monotonic()
        child = Child([sys.executable, "-m", "dispatchai", self._command], env=self._settings, on_line=self._write)
        self._child = child
        await child.start()
        async with asyncio.timeout(READY_S):
            async for _ in rounds(POLL_S):
                if child.returncode is not None:
                    raise RuntimeError(f"{self.name} ended with {child.returncode} at its start: see {self._log}")
                if await self._is_ready():
                    break
        return time.monotonic() - began

    async def restart(self, *, kill: bool) -> Restart:
        """End it in order, or with SIGKILL, and start it again. Returns when it is ready."""
        child = self._child
        if child is None:
            raise RuntimeError(f"{self.name} was not started")
        at, began = time.time(), time.monotonic()
        if kill:
            os.kill(child.pid, signal.SIGKILL)
            exit_code = await child.wait()
        else:
            exit_code = await child.stop(GRACE_S)
        stop_s = time.monotonic() - began
        return Restart(self.name, kill, at, exit_code, stop_s, await self.start())

    async def stop(self) -> None:
        """End it in whatever state it is."""
        if self._child is not None:
            await self._child.stop(GRACE_S)

    async def shown(self, metric: str) -> float:
        """The value of `metric` now, the sum of its samples. Raises aiohttp.ClientError, KeyError if it has none."""
        async with self._http.get(f"{self._url}/metrics") as response:
            text = await response.text()
        values = [
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == metric
        ]
        if not values:
            raise KeyError(f"{self.name} shows no {metric}")
        return sum(values)

    async def _is_ready(self) -> bool:
        try:
            async with self._http.get(f"{self._url}/health/ready") as response:
                return response.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False

    def _write(self, line: str) -> None:
        with self._log.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")


@dataclass(frozen=True, slots=True)
class System:
    """The processes by their names, and how the simulated carrier reaches them and is reached."""

    connection: KafkaConnection
    processes: Mapping[str, Process]
    account: SimulatedAccount
    gateway_url: str
    carrier_port: int

    @property
    def targets(self) -> dict[str, list[str]]:
        """The addresses that Prometheus scrapes, by job."""
        targets: dict[str, list[str]] = {}
        for name, process in self.processes.items():
            targets.setdefault(f"dispatchai-{name.partition('-')[0]}", []).append(process.address)
        return targets

    async def unclean_starts(self) -> dict[str, float]:
        """What each process shows of its unclean starts."""
        metric = unclean_starts()
        return {name: await process.shown(metric) for name, process in self.processes.items()}

    async def sockets_open(self) -> int:
        """The media sockets that are open at the gateways."""
        gateways = [process for name, process in self.processes.items() if name.startswith("gateway")]
        return int(sum([await gateway.shown(SOCKETS_OPEN) for gateway in gateways]))


@asynccontextmanager
async def system(connection: KafkaConnection, folder: Path) -> AsyncIterator[System]:
    """Start the six processes on the topics at `connection`, with states and logs in `folder`. All are ready then.

    Raises RuntimeError or TimeoutError if one does not become ready.
    """
    account = SimulatedAccount.load_or_create(folder / "carrier")
    ports, carrier_port = (free_port(), free_port()), free_port()
    async with AsyncExitStack() as running:
        http = await running.enter_async_context(
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5.0), connector=aiohttp.TCPConnector(limit=0))
        )
        entrance, _ = await running.enter_async_context(front(ports))
        variables = {
            "SIMULATED_CARRIER_PORT": str(carrier_port),
            "TELNYX_PUBLIC_KEY": account.public_key,
            "STREAM_TOKEN_SECRET": account.stream_token_secret,
            "WS_PUBLIC_URL": f"ws://127.0.0.1:{entrance}/ws",
            "SPEECH_ENGINE": "scripted",
            "CALL_DEADLINE_S": str(CALL_DEADLINE_S),
            "LOG_LEVEL": "INFO",
        }
        processes: dict[str, Process] = {}
        for name in PROCESSES:
            settings = environment(folder / "state" / name, variables, connection)
            if name.startswith("gateway"):
                settings["GATEWAY_PORT"] = str(ports[int(name[-1]) - 1])
            processes[name] = Process(name, settings, folder / f"{name}.log", http)
            running.push_async_callback(processes[name].stop)
        await asyncio.gather(*(process.start() for process in processes.values()))
        yield System(connection, processes, account, f"http://127.0.0.1:{entrance}", carrier_port)
