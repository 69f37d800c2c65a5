"""How log lines are written: one line an event, for people or as JSON. No line holds what a caller said or who called.

Lines of the libraries go through the same formatter.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, Final

import structlog

from dispatchai.settings import LogFormat

QUIET: Final[dict[str, int]] = {
    # Faust and its services log each step of each service's start and stop at INFO.
    "faust": logging.WARNING,
    "mode": logging.WARNING,
    # aiokafka logs reconnects to brokers of which it tells its caller too.
    "aiokafka": logging.WARNING,
    "asyncio": logging.WARNING,
}
"""Libraries whose lines below this level say nothing to an operator."""


def configure(log_format: LogFormat, level: str, process: str) -> None:
    """Set up logging of this process; `process` is in each line."""
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
        final += [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=final))
    logging.basicConfig(handlers=[handler], level=level, force=True)
    for name, at_least in QUIET.items():
        logging.getLogger(name).setLevel(max(at_least, logging.getLevelName(level)))
    structlog.contextvars.bind_contextvars(process=process)
