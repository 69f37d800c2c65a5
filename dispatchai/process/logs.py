"""Configures logging: one line for each event, for people or as JSON.

Decides the format and the levels; lines of the libraries go through the same formatter. No line may hold what a caller
said or who called.
"""

from __future__ import annotations

import logging
import sys
import threading
from enum import StrEnum
from types import TracebackType
from typing import Any, Final, TextIO

import structlog

from dispatchai.process.log_limit import LimitedLines

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class LogFormat(StrEnum):
    """How log lines are written."""

    CONSOLE = "console"
    JSON = "json"


QUIET: Final[dict[str, int]] = {
    # Faust and its services log each step of each service's start and stop at INFO.
    "faust": logging.WARNING,
    "mode": logging.WARNING,
    # aiokafka logs reconnects to brokers, which it also reports to its caller.
    "aiokafka": logging.WARNING,
    "asyncio": logging.WARNING,
}
"""Libraries whose lines below this level are of no use to an operator."""

LIMITED_S: Final[dict[str, float]] = {
    # A stranger makes them write lines, as many as they like.
    "aiohttp": 1.0,
    "asyncio": 1.0,
    # While Kafka is away each client writes some tens of lines a second. The program itself reports the change in one
    # line, `kafka_unreachable`.
    "aiokafka": 60.0,
}
"""The least time between two lines of one kind, by library, in seconds."""


def writes_json() -> bool:
    """Whether `configure` has set up lines of JSON in this process."""
    return any(isinstance(one, _JsonHandler) for one in logging.getLogger().handlers)


class _JsonHandler(logging.StreamHandler[TextIO]):
    """The handler of lines of JSON."""


def configure(log_format: LogFormat, level: str, process: str) -> None:
    """Set up the logging of this process. Each line names it as `process`."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.stdlib.ExtraAdder(),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    final: list[Any] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if log_format is LogFormat.JSON:
        final += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        # Where rich is installed, structlog's default would print every frame's variables: records, numbers, words.
        plain = structlog.dev.plain_traceback
        final += [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]
    handler = (_JsonHandler if log_format is LogFormat.JSON else logging.StreamHandler)(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=final))
    handler.addFilter(LimitedLines(LIMITED_S))
    logging.basicConfig(handlers=[handler], level=level, force=True)
    for name, at_least in QUIET.items():
        logging.getLogger(name).setLevel(max(at_least, logging.getLevelName(level)))
    structlog.contextvars.bind_contextvars(process=process)
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread


def _log_uncaught(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Write an exception that ends the process as one line like any other, and not as Python's bare traceback."""
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, traceback)
        return
    log.critical("uncaught_exception", error=f"{kind.__name__}: {error}", exc_info=(kind, error, traceback))


def _log_uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    """The same for an exception that ends a thread. asyncio reports those of its callbacks to its logger by itself."""
    error = args.exc_value
    if error is None or isinstance(error, SystemExit):
        return
    name = args.thread.name if args.thread else ""
    exc_info = (type(error), error, args.exc_traceback)
    log.critical("uncaught_exception", thread=name, error=f"{type(error).__name__}: {error}", exc_info=exc_info)
