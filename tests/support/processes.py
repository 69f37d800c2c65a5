"""The processes of a run: starts the system, or one process of it, and reads the resources that each has used.

Decides where a run listens and keeps its state. The measurements and tests decide what is called and measured.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import uuid4

from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.embedded_broker import free_port
from dispatchai.process.child import Child
from dispatchai.process.run_info import RunInfo
from dispatchai.settings import Settings

START_S: Final = 120.0
"""Longer than `up` itself waits, so that its own error is shown."""

READY_LINE: Final = "Ctrl-C stops everything"

KEPT_LINES: Final = 200
"""Lines of the run's output that are kept, to be shown after a failure."""

MARK: Final = "DISPATCHAI_BENCH_MARK"
"""Environment variable that all processes of a run inherit, and by which they are found."""

_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_PARTS: Final = {
    re.compile(r"-m dispatchai (gateway|console|worker|speech)\b"): "{}",
    re.compile(r"\btansu\b"): "embedded broker",
    re.compile(r"kafka\.Kafka\b"): "Apache Kafka",
}


@dataclass(frozen=True, slots=True)
class Used:
    """The resources of a process: seconds of processor time since its start, and bytes of memory now."""

    cpu_s: float
    memory_bytes: int


async def rounds(every_s: float) -> AsyncIterator[None]:
    """One round at once, then one every `every_s`: for waiting on things that give no notice of changes."""
    while True:
        yield
        await asyncio.sleep(every_s)


def used_by(pid: int) -> Used:
    """The resources that the process `pid` has used, its threads included. Raises OSError if it has ended."""
    # Linux: the clock of a process is ~pid << 3, with 2 for the scheduler's count (clock_getcpuclockid(3)).
    # It is exact to the microsecond, where /proc/<pid>/stat counts ticks of 10 ms.
    cpu_s = time.clock_gettime((~pid << 3) | 2)
    return Used(cpu_s, int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES)


def used_by_each(pids: Mapping[str, int]) -> dict[str, Used]:
    """`used_by` for each of `pids`, by the same names."""
    return {name: used_by(pid) for name, pid in pids.items()}


def cores(before: Mapping[str, Used], after: Mapping[str, Used], seconds: float) -> dict[str, float]:
    """Processor time per second of each process that is in both, `seconds` apart."""
    return {name: (after[name].cpu_s - used.cpu_s) / seconds for name, used in before.items() if name in after}


def environment(
    state_dir: Path, variables: Mapping[str, str], connection: KafkaConnection | None = None
) -> dict[str, str]:
    """The environment of a process of the program: free ports, warnings only, the broker of `connection`, and
    `variables`, but no other settings of the caller's environment."""
    ports = ("GATEWAY_PORT", "CONSOLE_PORT", "WORKER_PORT", "SPEECH_PORT", "SIMULATED_CARRIER_PORT")
    return {
        **{name: value for name, value in os.environ.items() if name.lower() not in Settings.model_fields},
        **{name: str(free_port()) for name in ports},
        "STATE_DIR": str(state_dir),
        "LOG_LEVEL": "WARNING",
        **(kafka_variables(connection) if connection is not None else {}),
        **variables,
    }


def kafka_variables(connection: KafkaConnection) -> dict[str, str]:
    """The settings that name the broker of `connection`."""
    return {
        "KAFKA_BOOTSTRAP_SERVERS": connection.bootstrap_servers,
        "KAFKA_IS_EMBEDDED": str(connection.embedded).lower(),
    }


@dataclass(frozen=True, slots=True)
class Run:
    """A running system."""

    settings: Settings
    info: RunInfo
    mark: str
    output: deque[str]

    def used(self) -> dict[str, Used]:
        """The resources of each process of the run, as the operating system counts them."""
        return used(self.mark, self.info.bootstrap_servers)


@asynccontextmanager
async def run(state_dir: Path, variables: Mapping[str, str]) -> AsyncIterator[Run]:
    """Run `dispatchai up` on free ports, with `variables` in its environment. Raises RuntimeError if that fails."""
    mark = variables.get(MARK) or uuid4().hex
    settings = environment(state_dir, {MARK: mark, **variables})
    output: deque[str] = deque(maxlen=KEPT_LINES)
    ready = asyncio.Event()

    def take(line: str) -> None:
        output.append(line)
        if READY_LINE in line:
            ready.set()

    async with Child([sys.executable, "-m", "dispatchai", "up"], env=settings, on_line=take) as child:
        waits = [asyncio.create_task(ready.wait()), asyncio.create_task(child.wait())]
        await asyncio.wait(waits, timeout=START_S, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
        info = RunInfo.load(state_dir)
        if not ready.is_set() or info is None:
            raise RuntimeError("\n".join(["`dispatchai up` did not start:", *output]))
        yield Run(Settings(_env_file=None, state_dir=state_dir), info, mark, output)


def used(mark: str, broker: str) -> dict[str, Used]:
    """The resources of the processes with `mark` in their environment, by their kind.

    The embedded broker has an empty environment, and is found by the address `broker` on its command line.
    """
    found: dict[str, Used] = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if f"{MARK}={mark}".encode() not in (folder / "environ").read_bytes() and broker not in command:
                continue
            name = _name(command)
            if name is not None and "reaper.py" not in command:
                found[name] = used_by(int(folder.name))
        except OSError:  # it ended meanwhile
            continue
    return found


def _name(command: str) -> str | None:
    for pattern, name in _PARTS.items():
        if match := pattern.search(command):
            return name.format(*match.groups())
    return None
