"""A worker with the signals agent alone, in a process of its own: `python -m bench.worker`.

Takes the program's settings from its environment. BENCH_APP_ID names its consumer group, by default that of the
program's own worker. BENCH_UPDATED names a file for the times of `MeasuredAgent`, which is written at the end.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from array import array
from collections import Counter
from itertools import repeat
from pathlib import Path
from typing import Final

import numpy as np

from agents.signals import SignalsAgent
from dispatchai.app import WORKER
from dispatchai.engine.app import App, create_app, run_app, use_uvloop
from dispatchai.engine.fetch import Fetch
from dispatchai.kafka.topics import Topic, Topics
from dispatchai.process.logs import configure
from dispatchai.settings import Settings

APP_ID: Final = "BENCH_APP_ID"
UPDATED: Final = "BENCH_UPDATED"


class MeasuredAgent(SignalsAgent):
    """Notes for how long each frame was in Kafka before its call's state was updated, where Kafka stamps records.

    Times are kept by fetch, partition and stamp: all records of a batch of Kafka's have one stamp.
    """

    def __init__(self, app: App, partitions: int) -> None:
        self._kept = [array("d"), array("d"), array("d")]
        super().__init__(app, partitions)

    async def process(self, fetch: Fetch) -> None:
        """Process a fetch, and note when that was done."""
        await super().process(fetch)
        now = time.time()
        if fetch.batches[0].tp.topic == Topic.AUDIO_FRAMES:
            for batch in fetch.batches:
                stamps = Counter(record.timestamp for record in batch.records)
                for kept, values in zip(self._kept, (repeat(now, len(stamps)), stamps, stamps.values()), strict=True):
                    kept.extend(values)

    def save(self, path: Path) -> None:
        """Write an array of shape (3, n): when states were updated, in seconds since the epoch; when Kafka received
        their frames, in milliseconds; the number of frames."""
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.array(self._kept))


async def _run() -> int:
    settings = Settings(_env_file=None)
    configure(settings.log_format, settings.log_level, "worker")
    partitions = Topics.load().partitions
    with tempfile.TemporaryDirectory(prefix="dispatchai-bench-worker-") as folder:
        app = create_app(
            os.environ.get(APP_ID, WORKER),
            settings.kafka(),
            dead_letter_topic=Topic.DEAD_LETTERS,
            partitions=partitions,
            web_host=settings.console_host,
            web_port=settings.worker_port,
            data_dir=Path(folder),
        )
        path = os.environ.get(UPDATED)
        if path is None:
            SignalsAgent(app, partitions)
            return await run_app(app)
        agent = MeasuredAgent(app, partitions)
        try:
            return await run_app(app)
        finally:
            agent.save(Path(path))


if __name__ == "__main__":
    use_uvloop()
    sys.exit(asyncio.run(_run()))
