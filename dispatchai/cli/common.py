"""What several commands share: their settings, their Kafka, and how they end the program.

Decides how a wrong setting and a failing Kafka are worded. `main` turns the errors into messages and exit codes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, NoReturn

import click
from pydantic import ValidationError

from dispatchai.cli.errors import CliError, UnusableError
from dispatchai.cli.printing import printable_lines
from dispatchai.settings import Settings, log_format_alone
from dispatchai.settings import settings as read_settings


def say(text: str) -> None:
    """Print `text`, which may have come from outside in part."""
    click.echo(printable_lines(text))


def settings_of(process: str) -> Settings:
    """The settings, with logging configured. Raises UnusableError with each setting that is wrong."""
    from dispatchai.process.logs import LogFormat, configure

    try:
        settings = read_settings()
    except ValidationError as error:
        lines = []
        for problem in error.errors(include_url=False, include_input=False):
            name = "_".join(str(part) for part in problem["loc"]).upper()
            lines.append(f"{name + ': ' if name else ''}{problem['msg'].removeprefix('Value error, ')}")
        lines.append("set it in the environment or in .env; .env.example explains each setting")
        if (log_format := log_format_alone()) is LogFormat.JSON:
            configure(log_format, "INFO", process)
        raise UnusableError("\n".join(lines)) from None
    configure(settings.log_format, settings.log_level, process)
    return settings


def run_and_exit(main: Coroutine[Any, Any, int]) -> NoReturn:
    """Run `main` and end the program with its exit code."""
    raise SystemExit(asyncio.run(main))


def kafka_of(settings: Settings) -> Any:
    """The configured Kafka or, without one, the embedded broker of a run on this machine. Raises UnusableError."""
    from dispatchai.process.run_info import RunInfo

    if settings.kafka_bootstrap_servers:
        return settings.kafka()
    run = RunInfo.load(settings.state_dir)
    if run is None:
        raise UnusableError("KAFKA_BOOTSTRAP_SERVERS is not set and no `dispatchai up` is running here")
    return settings.kafka(run.bootstrap_servers)


async def on_kafka(command: Coroutine[Any, Any, int]) -> int:
    """Run a command that uses Kafka. Raises CliError with the cause when Kafka or a file fails."""
    from aiokafka.errors import KafkaError

    from dispatchai.cli.up import explain

    try:
        return await command
    except KafkaError as error:
        raise CliError(await explain(kafka_of(read_settings()), error)) from error
    except OSError as error:
        raise CliError(str(error)) from error
