"""A gateway in a process of its own, for measurements: started from settings, as `dispatchai gateway` is.

Run as a module it is that process: it prints its port, then serves until its input ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import SecretStr

from dispatchai.engine.app import use_uvloop
from dispatchai.gateway.app import serve
from dispatchai.kafka.connection import KafkaConnection
from dispatchai.process.logs import LogFormat, configure
from dispatchai.settings import Settings
from tests.support.processes import Used, used_by

STREAM_SECRET: Final = "a secret of the measurement"
PUBLIC_KEY: Final = "BENCH_PUBLIC_KEY"
"""Variable with the public key of the webhooks that are sent."""

BOOTSTRAP: Final = "BENCH_BOOTSTRAP_SERVERS"
EMBEDDED: Final = "BENCH_BROKER_IS_EMBEDDED"
LOG_LEVEL: Final = "BENCH_LOG_LEVEL"


@dataclass(frozen=True, slots=True)
class Running:
    """A running gateway."""

    port: int
    pid: int

    def used(self) -> Used:
        """The resources it has used so far."""
        return used_by(self.pid)


@asynccontextmanager
async def gateway(
    connection: KafkaConnection,
    public_key: str = "",
    *,
    settings: Mapping[str, str] | None = None,
    log_level: str = "ERROR",
    log_file: Path | None = None,
) -> AsyncIterator[Running]:
    """A gateway on a free port that accepts webhooks signed for `public_key` and tokens of STREAM_SECRET.

    `settings` are further settings, by their names in the environment. Its log goes to `log_file`.
    """
    environment = os.environ | {
        PUBLIC_KEY: public_key,
        BOOTSTRAP: connection.bootstrap_servers,
        EMBEDDED: "1" if connection.embedded else "",
        LOG_LEVEL: log_level,
        **(settings or {}),
    }
    with contextlib.ExitStack() as files:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.support.gateway_process"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=None if log_file is None else files.enter_context(log_file.open("wb")),
            env=environment,
        )
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("the gateway has no pipes")
    try:
        line = await process.stdout.readline()
        if not line:
            raise RuntimeError("the gateway did not start")
        yield Running(int(line), process.pid)
    finally:
        process.stdin.close()
        await process.wait()


async def _serve() -> None:
    settings = Settings(
        gateway_port=0,
        telnyx_public_key=os.environ[PUBLIC_KEY],
        stream_token_secret=SecretStr(STREAM_SECRET),
    )
    connection = KafkaConnection(os.environ[BOOTSTRAP], embedded=bool(os.environ[EMBEDDED]))
    serving = asyncio.create_task(
        serve(settings, connection, listening=lambda _, port: print(port, flush=True)), name="gateway"
    )
    parent = asyncio.create_task(asyncio.to_thread(sys.stdin.read), name="parent")
    await asyncio.wait([serving, parent], return_when=asyncio.FIRST_COMPLETED)
    serving.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await serving


if __name__ == "__main__":
    use_uvloop()
    configure(LogFormat.JSON, os.environ[LOG_LEVEL], "gateway")
    asyncio.run(_serve())
