"""A worker of the signals agent alone, in a process of its own: `python -m bench.worker`, with the program's settings
in its environment. APP_ID names its consumer group; by default it is the program's own worker's.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from pathlib import Path
from typing import Final

from agents import signals
from dispatchai.app import WORKER
from dispatchai.engine.app import create_app, run_app, use_uvloop
from dispatchai.engine.topics import Topics
from dispatchai.logs import configure
from dispatchai.settings import Settings

APP_ID: Final = "BENCH_APP_ID"


async def _run() -> int:
    settings = Settings(_env_file=None)
    configure(settings.log_format, settings.log_level, "worker")
    partitions = Topics.load().partitions
    with tempfile.TemporaryDirectory(prefix="dispatchai-bench-worker-") as folder:
        app = create_app(
            os.environ.get(APP_ID, WORKER),
            settings.kafka(),
            partitions=partitions,
            web_host=settings.console_host,
            web_port=settings.console_port,
            data_dir=Path(folder),
        )
        signals.make(app, partitions)
        return await run_app(app)


if __name__ == "__main__":
    use_uvloop()
    sys.exit(asyncio.run(_run()))
