"""Whether an application has failed and must stop. Its supervisor starts a new process from the committed offsets."""

from __future__ import annotations

import asyncio

import structlog

log = structlog.get_logger(__name__)


class Failure:
    """The failure of one application. Once it is reported, nothing more is written or committed."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def report(self, error: BaseException) -> None:
        """Stop the application because of `error`."""
        log.error("application_failed", error=f"{type(error).__name__}: {error}")
        self._event.set()

    @property
    def has_failed(self) -> bool:
        """Whether a failure was reported."""
        return self._event.is_set()

    async def wait(self) -> None:
        """Return when a failure was reported."""
        await self._event.wait()
