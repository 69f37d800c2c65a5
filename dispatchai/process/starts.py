"""Whether a process ended in order the last time, so that a planned restart can be told from a crash.

Decides what is noted in the state folder, and the metric. A process that ends with code 0 notes it; one that was
killed, crashed or ended with an error does not, and its next start counts as unclean.
"""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, Self

import orjson
import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, Metric

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

FILE: Final = "{name}.{host}.starts.json"
"""With the host: replicas in containers may share a volume, and each has a host name of its own."""


class Starts:
    """The starts of one process, known by its name, its port and its host."""

    def __init__(self, path: Path, unclean: int) -> None:
        self._path = path
        self.unclean = unclean
        """Starts after an end that was not in order, since the state folder was made."""

    @classmethod
    def begin(cls, state_dir: Path, name: str) -> Self:
        """Note that the process `name` runs. A folder that cannot be written costs the metric and not the start."""
        path = state_dir / FILE.format(name=name, host=socket.gethostname())
        before, running = _read(path)
        starts = cls(path, before + running)
        starts._note(running=True)
        return starts

    def ended(self) -> None:
        """Note that the process ends in order."""
        self._note(running=False)

    def show(self, registry: CollectorRegistry) -> None:
        """Expose the number of unclean starts."""
        registry.register(self)

    def collect(self) -> Iterable[Metric]:
        """Called by the registry at a scrape."""
        yield CounterMetricFamily(
            "dispatchai_unclean_starts",
            "Starts after a crash, a kill or an end with an error. Kept in STATE_DIR over restarts.",
            self.unclean,
        )

    def _note(self, *, running: bool) -> None:
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=self._path.name, dir=self._path.parent)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(orjson.dumps({"running": running, "unclean": self.unclean}))
                Path(name).replace(self._path)
            finally:
                Path(name).unlink(missing_ok=True)
        except OSError as error:
            log.warning("start_not_noted", path=str(self._path), error=error.strerror)


def _read(path: Path) -> tuple[int, bool]:
    """The number of unclean starts, and whether the process ran when it was noted last."""
    noted: Any = None
    with contextlib.suppress(OSError, orjson.JSONDecodeError):
        noted = orjson.loads(path.read_bytes())
    match noted:
        case {"running": bool() as running, "unclean": int() as unclean} if unclean >= 0:
            return unclean, running
        case _:
            return 0, False
