"""The whole system as its user runs it: the command line, on free ports, in a folder of its own."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.embedded_broker import free_port

START_S = 120.0
"""Longer than `up` waits itself: it is to tell what is wrong."""

MARK = "DISPATCHAI_TEST_MARK"
"""Variable that every process of a run inherits, so that none of them can hide."""


@dataclass(frozen=True)
class System:
    """Where a run's parts listen, and the environment that its commands are given."""

    environment: dict[str, str]
    mark: str
    console_url: str
    worker_url: str
    gateway_url: str

    @classmethod
    def on(cls, broker: KafkaConnection | None, folder: Path, **settings: str) -> System:
        """A system on `broker`; without one it starts an embedded broker of its own."""
        ports = {name: str(free_port()) for name in ("GATEWAY_PORT", "CONSOLE_PORT", "WORKER_PORT", "SPEECH_PORT")}
        mark = uuid4().hex
        environment = {
            **{name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG", "TMPDIR")},
            **ports,
            "SIMULATED_CARRIER_PORT": str(free_port()),
            "STATE_DIR": str(folder / "state"),
            MARK: mark,
            **settings,
        }
        if broker is not None:
            environment["KAFKA_BOOTSTRAP_SERVERS"] = broker.bootstrap_servers
            environment["KAFKA_IS_EMBEDDED"] = str(broker.embedded).lower()
        return cls(
            environment,
            mark,
            console_url=f"http://127.0.0.1:{ports['CONSOLE_PORT']}",
            worker_url=f"http://127.0.0.1:{ports['WORKER_PORT']}",
            gateway_url=f"http://127.0.0.1:{ports['GATEWAY_PORT']}",
        )

    async def run(self, *arguments: str) -> asyncio.subprocess.Process:
        """Start `dispatchai` with `arguments`."""
        return await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "dispatchai", *arguments),
            env=self.environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )

    def processes(self) -> list[str]:
        """Command lines of the processes of this run that are alive now, zombies aside."""
        found = []
        for process in Path("/proc").iterdir():
            if not process.name.isdigit():
                continue
            try:
                if f"{MARK}={self.mark}".encode() in (process / "environ").read_bytes():
                    found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:  # it ended meanwhile
                continue
        return found


async def read_until(process: asyncio.subprocess.Process, text: str) -> str:
    """Output of `process` up to the line that holds `text`. Fails with all of it when that does not come."""
    assert process.stdout is not None
    output = ""
    async with asyncio.timeout(START_S):
        while text not in output:
            line = await process.stdout.readline()
            assert line, f"{text!r} did not come:\n{output}"
            output += line.decode()
    return output


def packets_in(output: str) -> list[dict[str, Any]]:
    """The packets that a command printed with --json among its other lines."""
    start = output.index("\n[\n") + 1 if "\n[\n" in output else output.index("[")
    packets, _ = json.JSONDecoder().raw_decode(output[start:])
    assert isinstance(packets, list)
    return packets
