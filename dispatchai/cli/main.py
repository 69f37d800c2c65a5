"""The command line: subcommands, options and help. The module of each subcommand does the work.

Decides how an error becomes a message and an exit code: `_Commands` is the one place. Heavy imports are inside the
subcommands, so that each loads only what it needs.
"""

from __future__ import annotations

import asyncio
import functools
import os
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

import click
import structlog
from pydantic import ValidationError

from dispatchai import __version__
from dispatchai.cli.errors import CliError, UnusableError
from dispatchai.kafka.errors import KafkaOperationError
from dispatchai.kafka.topics import TopicsFileError
from dispatchai.process.errors import ProcessError
from dispatchai.settings import Settings
from dispatchai.settings import settings as read_settings
from dispatchai.triage.errors import RulesError

T = TypeVar("T")

EXIT_INTERRUPTED: Final = 130
"""Exit code after Ctrl-C, as in shells: 128 + SIGINT."""


class _Commands(click.Group):
    """The one place where an error becomes a message on standard error and an exit code, without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the subcommand."""
        try:
            return super().invoke(ctx)
        except CliError as error:
            message, code = str(error), error.exit_code
        except (TopicsFileError, RulesError) as error:
            message, code = str(error), UnusableError.exit_code
        except (KafkaOperationError, ProcessError) as error:
            message, code = str(error), CliError.exit_code
        except KeyboardInterrupt:
            raise SystemExit(EXIT_INTERRUPTED) from None
        click.echo(f"dispatchai: {message}", err=True)
        raise SystemExit(code)


def _settings(process: str) -> Settings:
    """The settings, with logging configured. Raises UnusableError with each setting that is wrong."""
    from dispatchai.process.logs import configure

    try:
        settings = read_settings()
    except ValidationError as error:
        lines = []
        for problem in error.errors(include_url=False, include_input=False):
            name = "_".join(str(part) for part in problem["loc"]).upper()
            lines.append(f"{name + ': ' if name else ''}{problem['msg'].removeprefix('Value error, ')}")
        lines.append("set it in the environment or in .env; .env.example explains each setting")
        raise UnusableError("\n".join(lines)) from None
    configure(settings.log_format, settings.log_level, process)
    return settings


def _run(main: Coroutine[Any, Any, int]) -> NoReturn:
    """Run `main` and end the program with its exit code."""
    raise SystemExit(asyncio.run(main))


async def _supervised(body: Coroutine[Any, Any, int]) -> int:
    """Run `body`, which starts processes, so that Ctrl-C at any moment stops them in order."""
    from dispatchai.cli.up import supervise

    return await supervise(body, click.echo)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="dispatchai")
def main() -> None:
    """Triage of emergency calls while they are in progress."""


@main.command()
def up() -> None:
    """Run the whole system on this machine.

    One process of each kind and, without KAFKA_BOOTSTRAP_SERVERS, an embedded broker.
    """
    settings = _settings("up")

    async def run() -> int:
        from dispatchai.cli.up import UpError, up

        async with up(settings, click.echo) as running:
            click.echo(f"page     {running.info.console_url}/")
            click.echo(f"webhooks {running.info.gateway_url}/api/v1/call/incoming")
            click.echo(f"media    {running.info.ws_url}")
            if settings.carrier_is_simulated:
                click.echo("TELNYX_API_KEY is not set: call in with `dispatchai call FILE.wav`")
            click.echo("Ctrl-C stops everything")
            raise UpError(await running.failure())

    _run(_supervised(run()))


@main.command()
@click.option(
    "--tunnel", "provider", type=click.Choice(["ngrok", "cloudflared"]), help="Default: the one that is installed."
)
def dev(provider: str | None) -> None:
    """Run the whole system behind a tunnel, for real calls.

    Like `up`, but sets HTTP_PUBLIC_URL and WS_PUBLIC_URL, and prints the URL for the Telnyx Portal.
    """
    settings = _settings("up")

    async def run() -> int:
        from dispatchai.cli.dev import Provider
        from dispatchai.cli.dev import dev as run_dev

        return await run_dev(settings, click.echo, None if provider is None else Provider(provider))

    _run(_supervised(run()))


@main.command()
@click.option("--exit", "leave", is_flag=True, help="Exit once the packets are there, instead of keeping the page up.")
@click.option("--json", "as_json", is_flag=True, help="Print the packets as JSON.")
def demo(leave: bool, as_json: bool) -> None:
    """Run the whole system and let three recorded callers call in.

    They call in at once; their progress, their ranks and their packets are shown.
    """
    settings = _settings("demo")

    async def run() -> int:
        from dispatchai.cli.demo import demo as run_demo

        return await run_demo(settings, leave=leave, as_json=as_json)

    _run(_supervised(run()))


@main.command()
def gateway() -> None:
    """Run the gateway, which takes webhooks and media."""
    settings = _settings("gateway")

    async def run() -> int:
        from dispatchai.cli.up import until_signal
        from dispatchai.gateway.app import serve
        from dispatchai.gateway.kafka_writer import ProducerBrokenError

        serving = asyncio.create_task(serve(settings, settings.kafka()))
        asked = asyncio.create_task(until_signal())
        await asyncio.wait([serving, asked], return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()
        if not serving.done():
            serving.cancel()
        try:
            await serving
        except asyncio.CancelledError:
            return 0
        except ProducerBrokenError as error:
            structlog.get_logger(__name__).error("gateway_failed", error=str(error))
            return 1
        except OSError as error:
            where = f"{settings.gateway_host}:{settings.gateway_port}"
            why = error.strerror or error
            raise UnusableError(f"cannot listen on {where}: {why}; set GATEWAY_PORT to a free port") from error
        except ValueError as error:
            raise UnusableError(str(error)) from error
        return 0

    _need_kafka(settings)
    from dispatchai.engine.app import use_uvloop

    use_uvloop()
    _run(run())


@main.command()
def worker() -> None:
    """Run a worker, which triages and ranks the calls.

    It has the agents calls, signals, triage and ranking, and serves the page.
    """
    settings = _settings("worker")

    async def run() -> int:
        from dispatchai.app import worker_app
        from dispatchai.engine.app import run_app

        return await run_app(_made(worker_app, settings))

    _need_kafka(settings)
    _run_faust(run())


@main.command()
def speech() -> None:
    """Run a speech process, which transcribes callers."""
    settings = _settings("speech")

    async def run() -> int:
        from dispatchai.app import speech_app
        from dispatchai.engine.app import run_app

        return await run_app(_made(speech_app, settings))

    _need_kafka(settings)
    _run_faust(run())


def _run_faust(main: Coroutine[Any, Any, int]) -> NoReturn:
    from dispatchai.engine.app import use_uvloop

    use_uvloop()
    _run(main)


def _made(make: Callable[[Settings], T], settings: Settings) -> T:
    """The application of a process. What keeps it from being made is in the configuration, so a restart would not help.

    Raises UnusableError, RulesError and TopicsFileError, all of which end the program with code 2.
    """
    from dispatchai.engine.errors import UnsupportedVersionError

    try:
        return make(settings)
    except RulesError:
        raise
    except (OSError, ValueError, UnsupportedVersionError) as error:
        raise UnusableError(str(error)) from error


def _need_kafka(settings: Settings) -> None:
    """Raise UnusableError unless the settings name a Kafka that a client can be made for."""
    if not settings.kafka_bootstrap_servers:
        raise UnusableError("KAFKA_BOOTSTRAP_SERVERS is not set: name the brokers, or run `dispatchai up` instead")
    try:
        settings.kafka().ssl_context()
    except (ValueError, OSError) as error:
        raise UnusableError(f"the Kafka settings cannot be used: {error}; see KAFKA_* in .env.example") from error


class _CallCommand(click.Command):
    """The help of `call` ends with the list of faults."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from dispatchai.simulator.faults import catalogue

        with formatter.section("Faults, each described in docs/simulated-carrier.md"):
            formatter.write_dl([(f"{name}={unit}" if unit else name, about) for name, unit, about in catalogue()])


@main.command(cls=_CallCommand)
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--from", "from_number", help="The number of the first caller.")
@click.option("--speed", default=1.0, show_default=True, help="How many times faster than in real time callers speak.")
@click.option("--console", "console_url", help="URL of the page, if it is not that of the local run.")
@click.option("--json", "as_json", is_flag=True, help="Print the packets as JSON.")
@click.option(
    "--fault",
    "faults",
    multiple=True,
    metavar="NAME[=VALUE]",
    help="A fault of the line; can be given several times. Listed below, with the meaning of a bare NAME in brackets.",
)
@click.option(
    "--seed", default=0, show_default=True, help="Seed that decides which frames, events and commands a rate hits."
)
def call(
    files: tuple[Path, ...],
    from_number: str | None,
    speed: float,
    console_url: str | None,
    as_json: bool,
    faults: tuple[str, ...],
    seed: int,
) -> None:
    """Call in with recordings and print the packets.

    Plays the carrier as Telnyx would. Several FILES are simultaneous calls.
    """
    from dispatchai.engine.app import use_uvloop
    from dispatchai.simulator.faults import FaultError, Faults

    try:
        line = Faults.parse(faults, seed)
    except FaultError as error:
        raise UnusableError(f"--fault: {error}") from None
    settings = _settings("call")

    async def run() -> int:
        from dispatchai.cli.call import call as run_call

        return await run_call(
            files,
            from_number=from_number,
            settings=settings,
            speed=speed,
            console_url=console_url,
            as_json=as_json,
            faults=line,
        )

    use_uvloop()
    _run(run())


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
@click.option(
    "--env-file",
    "env_files",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Read settings from this file instead of .env. Of several files the later one wins.",
)
@click.option("--workers", help="host:port,... of all workers, instead of DOCTOR_WORKERS.")
def doctor(as_json: bool, env_files: tuple[Path, ...], workers: str | None) -> None:
    """Check the deployment and say what to do.

    Checks keys, URLs, Kafka, topics, clock, the public webhook and the media socket, and changes nothing. Exit code 1
    if a check failed.
    """
    from dispatchai.cli import doctor as checks
    from dispatchai.process.logs import LogFormat, configure

    # The results name each fault; log lines of the libraries would only repeat it.
    configure(LogFormat.CONSOLE, "CRITICAL", "doctor")

    async def run() -> int:
        files = env_files or (Path(".env"),)
        try:
            if workers is not None:
                os.environ["DOCTOR_WORKERS"] = workers
            settings = Settings(_env_file=files)
        except ValidationError as error:
            results = checks.settings_failed(error)
        else:
            results = await checks.examine(settings, files)
        colours = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        click.echo(checks.as_json(results) if as_json else checks.render(results, colours=colours))
        return checks.exit_code(results)

    _run(run())


@main.group()
def rules() -> None:
    """Check the rules of triage."""


@rules.command("check")
@click.argument("file", required=False, type=click.Path(path_type=Path))
def rules_check(file: Path | None) -> None:
    """Read the rules in FILE as a worker does.

    Without FILE those of RULES_FILE or, without that, those that ship with the program. Each fault is named with its
    file and line (exit code 2).
    """
    from dispatchai.triage.rules import DEFAULT_PATH, Rules

    path = file or _settings("rules").rules_file or DEFAULT_PATH
    loaded = Rules.load(path)
    click.echo(f"{path}: version {loaded.version}, {len(loaded.rules)} rules, {len(loaded.questions)} questions")


@main.group()
def topics() -> None:
    """Create or show the topics of topics.yaml."""


@topics.command("apply")
def topics_apply() -> None:
    """Create the missing topics.

    Reports what differs from topics.yaml, without changing it (exit code 1).
    """
    settings = _settings("topics")

    async def run() -> int:
        from dispatchai.cli.topics import render_report
        from dispatchai.kafka.admin import apply
        from dispatchai.kafka.topics import Topics

        report = await apply(_kafka(settings), Topics.load(settings.topics_file), settings.kafka_replication_factor)
        click.echo(render_report(report))
        return report.exit_code

    _run(_on_kafka(run()))


@topics.command("show")
def topics_show() -> None:
    """List the topics as the cluster has them.

    With partitions, policy, retention and offsets.
    """
    settings = _settings("topics")

    async def run() -> int:
        from dispatchai.cli.topics import render_show
        from dispatchai.kafka.admin import show
        from dispatchai.kafka.topics import Topics

        click.echo(render_show(await show(_kafka(settings), Topics.load(settings.topics_file))))
        return 0

    _run(_on_kafka(run()))


@main.group("dead-letters")
def dead_letters() -> None:
    """List, show or resend records that failed."""


class _Place(click.ParamType):
    """A record, as `dead-letters list` names it."""

    name = "record"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from dispatchai.kafka.dead_letters import Place

        try:
            return Place.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class _Moment(click.ParamType):
    """A time, in ms since the epoch."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from dispatchai.cli.dead_letters import moment_ms

        try:
            return moment_ms(value, time.time_ns() // 1_000_000)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _filters(command: Callable[..., None]) -> Callable[..., None]:
    """Options that choose dead letters. The command gets them as one `Filter` named `wanted`."""

    @click.option("--topic", help="Only records of this topic.")
    @click.option("--reader", help="Only records that this agent could not process.")
    @click.option("--since", type=_Moment(), help="Only dead letters since then: 90m, 2h, 7d or 2026-01-31T08:00.")
    @click.option("--until", type=_Moment(), help="Only dead letters written before then.")
    @functools.wraps(command)
    def filtered(topic: str | None, reader: str | None, since: int | None, until: int | None, **others: Any) -> None:
        from dispatchai.kafka.dead_letter_store import Filter

        command(wanted=Filter(topic, reader, since, until), **others)

    return filtered


@dead_letters.command("list")
@_filters
@click.option(
    "--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="The most records to show."
)
@click.option("--json", "as_json", is_flag=True, help="Print the records as JSON.")
def dead_letters_list(wanted: Any, limit: int, as_json: bool) -> None:
    """List the records that could not be processed, the newest first."""
    settings = _settings("dead-letters")

    async def run() -> int:
        from dispatchai.cli.dead_letters import list_dead_letters

        return await list_dead_letters(_kafka(settings), wanted, limit, as_json=as_json, out=sys.stdout, err=sys.stderr)

    _run(_on_kafka(run()))


@dead_letters.command("show")
@click.argument("record", type=_Place())
@click.option("--content", is_flag=True, help="Show what callers said, their numbers, and bytes that are not a record.")
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON.")
def dead_letters_show(record: Any, content: bool, as_json: bool) -> None:
    """Show a RECORD, given as TOPIC/PARTITION/OFFSET: each reader's error, headers and value."""
    settings = _settings("dead-letters")

    async def run() -> int:
        from dispatchai.cli.dead_letters import show_dead_letter

        return await show_dead_letter(
            _kafka(settings), record, content=content, as_json=as_json, out=sys.stdout, err=sys.stderr
        )

    _run(_on_kafka(run()))


@dead_letters.command("retry")
@click.argument("records", nargs=-1, type=_Place())
@click.option("--all", "every", is_flag=True, help="All open records that match the other options.")
@_filters
@click.option("--yes", is_flag=True, help="Send without asking.")
def dead_letters_retry(records: tuple[Any, ...], every: bool, wanted: Any, yes: bool) -> None:
    """Send RECORDS to their topics again. Their dead letters are kept. See docs/dead-letters.md for the effects."""
    from dispatchai.kafka.dead_letter_store import Filter

    if every == bool(records):
        raise UnusableError("name records as `dead-letters list` shows them, or give --all")
    if records and wanted != Filter():
        raise UnusableError("--topic, --reader, --since and --until need --all")
    settings = _settings("dead-letters")

    def confirm(question: str) -> bool:
        if not yes and not sys.stdin.isatty():
            raise UnusableError("there is no terminal to ask on: give --yes")
        return yes or click.confirm(question)

    async def run() -> int:
        from dispatchai.cli.dead_letters import retry_dead_letters

        return await retry_dead_letters(
            _kafka(settings), settings, records, wanted, confirm=confirm, out=sys.stdout, err=sys.stderr
        )

    _run(_on_kafka(run()))


def _kafka(settings: Settings) -> Any:
    """The configured Kafka or, without one, the embedded broker of a run on this machine. Raises UnusableError."""
    from dispatchai.process.run_info import RunInfo

    if settings.kafka_bootstrap_servers:
        return settings.kafka()
    run = RunInfo.load(settings.state_dir)
    if run is None:
        raise UnusableError("KAFKA_BOOTSTRAP_SERVERS is not set and no `dispatchai up` is running here")
    return settings.kafka(run.bootstrap_servers)


async def _on_kafka(command: Coroutine[Any, Any, int]) -> int:
    """Run a command that uses Kafka. Raises CliError with the cause when Kafka or a file fails."""
    from aiokafka.errors import KafkaError

    from dispatchai.cli.up import explain

    try:
        return await command
    except KafkaError as error:
        raise CliError(await explain(_kafka(read_settings()), error)) from error
    except OSError as error:
        raise CliError(str(error)) from error


if __name__ == "__main__":
    sys.exit(main())
