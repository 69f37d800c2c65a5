"""Prometheus with the alerts of `deploy/prometheus`, for as long as a measurement lasts: which of them fire.

Needs the program `prometheus`. Decides only which processes it scrapes; the rest is the deployment's own files.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import aiohttp
import yaml

from dispatchai.kafka.embedded_broker import free_port
from dispatchai.process.child import Child
from tests.deploy.monitoring import ALERTS, SCRAPE
from tests.support.processes import rounds

PROGRAM: Final = shutil.which("prometheus")

START_S: Final = 60.0

POLL_S: Final = 0.2

FIRED: Final = 'max by (alertname) (max_over_time(ALERTS{alertstate="firing"}[1h]))'


class Prometheus:
    """A running Prometheus at `url`."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def ready(self) -> None:
        """Return when it answers. Raises TimeoutError."""
        async with aiohttp.ClientSession() as http, asyncio.timeout(START_S):
            async for _ in rounds(POLL_S):
                try:
                    async with http.get(f"{self._url}/-/ready") as response:
                        if response.status == 200:
                            return
                except aiohttp.ClientError:
                    continue

    async def fired(self) -> list[str]:
        """The names of the alerts that have fired so far."""
        async with (
            aiohttp.ClientSession() as http,
            http.get(f"{self._url}/api/v1/query", params={"query": FIRED}) as response,
        ):
            answer = await response.json()
        return sorted(each["metric"]["alertname"] for each in answer["data"]["result"])


def _prepare(targets: Mapping[str, list[str]], folder: Path) -> Path:
    """Write the configuration into the new `folder`. Returns its file."""
    config = yaml.safe_load(SCRAPE.read_text(encoding="utf-8"))
    config["rule_files"] = [str(ALERTS)]
    config["scrape_configs"] = [
        {"job_name": job, "static_configs": [{"targets": addresses}]} for job, addresses in targets.items()
    ]
    folder.mkdir()
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    return file


@asynccontextmanager
async def prometheus(targets: Mapping[str, list[str]], folder: Path) -> AsyncIterator[Prometheus | None]:
    """A Prometheus that scrapes `targets`, host:port by job, with its files in the new `folder`.

    None if there are no targets, or if it is not installed.
    """
    if PROGRAM is None or not targets:
        yield None
        return
    file, port = _prepare(targets, folder), free_port()
    argv = [
        PROGRAM,
        f"--config.file={file}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=warn",
    ]
    async with Child(argv, cwd=folder):
        running = Prometheus(f"http://127.0.0.1:{port}")
        await running.ready()
        yield running
