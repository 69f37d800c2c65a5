"""The command line: subcommands, options and help. The module of each subcommand does the work.

Decides how an error becomes a message and an exit code: `_Commands` is the one place. Heavy imports are inside the
subcommands, so that each loads only what it needs.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

import click
import structlog
from prometheus_client import CollectorRegistry
from pydantic import ValidationError

from dispatchai import __version__
from dispatchai.cli.common import kafka_of, on_kafka, run_and_exit, say, settings_of
from dispatchai.cli.dead_letter_commands import dead_letters
from dispatchai.cli.errors import CliError, UnusableError
from dispatchai.cli.printing import printable_lines
from dispatchai.kafka.errors import KafkaOperationError
from dispatchai.kafka.topics import TopicsFileError
from dispatchai.process import logs
from dispatchai.process.errors import ProcessError
from dispatchai.process.starts import Starts
from dispatchai.settings import Settings
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
        if logs.writes_json():
            structlog.get_logger(__name__).critical("command_failed", error=message, exit_code=code)
        else:
            click.echo(f"dispatchai: {printable_lines(message)}", err=True)
        raise SystemExit(code)


async def _supervised(body: Coroutine[Any, Any, int]) -> int:
    """Run `body`, which starts processes, so that Ctrl-C at any moment stops them in order."""
    from dispatchai.cli.up import supervise

    return await supervise(body, say)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="dispatchai")
def main() -> None:
    """Triage of emergency calls while they are in progress."""


@main.command()
def up() -> None:
    """Run the whole system on this machine.

    One process of each kind and, without KAFKA_BOOTSTRAP_SERVERS, an embedded broker.
    """
    settings = settings_of("up")

    async def run() -> int:
        from dispatchai.cli.up import UpError, up

        async with up(settings, say) as running:
            say(f"page     {running.info.console_url}/")
            say(f"webhooks {running.info.gateway_url}/api/v1/call/incoming")
            say(f"media    {running.info.ws_url}")
            if settings.carrier_is_simulated:
                say("TELNYX_API_KEY is not set: call in with `dispatchai call FILE.wav`")
            say("Ctrl-C stops everything")
            raise UpError(await running.failure())

    run_and_exit(_supervised(run()))


@main.command()
@click.option(
    "--tunnel", "provider", type=click.Choice(["ngrok", "cloudflared"]), help="Default: the one that is installed."
)
def dev(provider: str | None) -> None:
    """Run the whole system behind a tunnel, for real calls.

    Like `up`, but sets HTTP_PUBLIC_URL and WS_PUBLIC_URL, and prints the URL for the Telnyx Portal.
    """
    settings = settings_of("up")

    async def run() -> int:
        from dispatchai.cli.dev import Provider
        from dispatchai.cli.dev import dev as run_dev

        return await run_dev(settings, say, None if provider is None else Provider(provider))

    run_and_exit(_supervised(run()))


@main.command()
@click.option("--exit", "leave", is_flag=True, help="Exit once the packets are there, instead of keeping the page up.")
@click.option("--json", "as_json", is_flag=True, help="Print the packets as JSON.")
def demo(leave: bool, as_json: bool) -> None:
    """Run the whole system and let three recorded callers call in.

    They call in at once; their progress, their ranks and their packets are shown.
    """
    settings = settings_of("demo")

    async def run() -> int:
        from dispatchai.cli.demo import demo as run_demo

        return await run_demo(settings, leave=leave, as_json=as_json)

    run_and_exit(_supervised(run()))


@main.command()
def gateway() -> None:
    """Run the gateway, which takes webhooks and media."""
    settings = settings_of("gateway")

    async def run() -> int:
        from dispatchai.gateway.app import serve
        from dispatchai.gateway.kafka_writer import ProducerBrokenError

        starts = Starts.begin(settings.state_dir, f"gateway-{settings.gateway_port}")
        where = f"{settings.gateway_host}:{settings.gateway_port}"
        try:
            code = await _serving(serve(settings, settings.kafka(), starts=starts), where, "GATEWAY_PORT")
        except ProducerBrokenError as error:
            structlog.get_logger(__name__).error("gateway_failed", error=str(error))
            return 1
        starts.ended()
        return code

    _need_kafka(settings)
    _run_uvloop(run())


@main.command()
def console() -> None:
    """Run the console, which serves the page and REST.

    Every console shows every call. Run as many as the dispatchers need.
    """
    settings = settings_of("console")

    async def run() -> int:
        from dispatchai.console.app import serve

        starts = Starts.begin(settings.state_dir, f"console-{settings.console_port}")
        where = f"{settings.console_host}:{settings.console_port}"
        code = await _serving(serve(settings, settings.kafka(), starts=starts), where, "CONSOLE_PORT")
        starts.ended()
        return code

    _need_kafka(settings)
    _run_uvloop(run())


async def _serving(server: Coroutine[Any, Any, None], where: str, port_setting: str) -> int:
    """Run `server` until it ends, or until Ctrl-C or SIGTERM. Returns the exit code; raises CliError."""
    from dispatchai.cli.up import until_signal

    serving = asyncio.create_task(server)
    asked = asyncio.create_task(until_signal())
    await asyncio.wait([serving, asked], return_when=asyncio.FIRST_COMPLETED)
    asked.cancel()
    if not serving.done():
        serving.cancel()
    try:
        await serving
    except asyncio.CancelledError:
        return 0
    except OSError as error:
        raise _cannot_listen(where, port_setting, error) from error
    except ValueError as error:
        raise UnusableError(str(error)) from error
    return 0


@main.command()
def worker() -> None:
    """Run a worker, which triages and ranks the calls.

    It has the agents calls, signals, triage and ranking.
    """
    settings = settings_of("worker")

    async def run() -> int:
        from dispatchai.app import worker_app
        from dispatchai.engine.app import run_app

        app = _made(worker_app, settings)
        _need_port(settings.console_host, settings.worker_port, "WORKER_PORT")
        return await _counted(run_app(app), settings, f"worker-{settings.worker_port}", app.metrics.registry)

    _need_kafka(settings)
    _run_uvloop(run())


@main.command()
def speech() -> None:
    """Run a speech process, which transcribes callers."""
    settings = settings_of("speech")

    async def run() -> int:
        from dispatchai.app import speech_app
        from dispatchai.engine.app import run_app

        app = _made(speech_app, settings)
        _need_port(settings.console_host, settings.speech_port, "SPEECH_PORT")
        return await _counted(run_app(app), settings, f"speech-{settings.speech_port}", app.metrics.registry)

    _need_kafka(settings)
    _run_uvloop(run())


def _run_uvloop(main: Coroutine[Any, Any, int]) -> NoReturn:
    from dispatchai.engine.app import use_uvloop

    use_uvloop()
    run_and_exit(main)


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


async def _counted(
    running: Coroutine[Any, Any, int], settings: Settings, name: str, registry: CollectorRegistry
) -> int:
    """Run a process, and note whether it ended in order. Returns its exit code."""
    starts = Starts.begin(settings.state_dir, name)
    starts.show(registry)
    code = await running
    if code == 0:
        starts.ended()
    return code


def _need_kafka(settings: Settings) -> None:
    """Raise UnusableError unless the settings name a Kafka that a client can be made for."""
    if not settings.kafka_bootstrap_servers:
        raise UnusableError("KAFKA_BOOTSTRAP_SERVERS is not set: name the brokers, or run `dispatchai up` instead")
    try:
        settings.kafka().ssl_context()
    except (ValueError, OSError) as error:
        raise UnusableError(f"the Kafka settings cannot be used: {error}; see KAFKA_* in .env.example") from error


def _need_port(host: str, port: int, setting: str) -> None:
    """Raise CliError unless a process can listen there: Faust would end with a traceback after it has begun."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, proto) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise _cannot_listen(f"{host}:{port}", setting, error) from error


def _cannot_listen(where: str, setting: str, error: OSError) -> CliError:
    """A port that is taken may be free at the next start, as when a former process is still ending: exit code 1. An
    address that this machine does not have, or may not use, is a wrong setting: exit code 2."""
    message = f"cannot listen on {where}: {error.strerror or error}; set {setting} to a free port"
    return CliError(message) if error.errno == errno.EADDRINUSE else UnusableError(message)


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
@click.option("--gateway", "gateway_url", help="URL of the gateway, if it is not that of the local run.")
@click.option(
    "--carrier",
    metavar="[HOST:]PORT",
    help="Where to take commands: the address in the worker's TELNYX_API_URL. The worker's TELNYX_API_KEY must be set.",
)
@click.option(
    "--signing-key",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File of the key that signs webhooks, made if it is missing. Its public key is printed.",
)
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
    gateway_url: str | None,
    carrier: str | None,
    signing_key: Path | None,
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
    settings = settings_of("call")

    async def run() -> int:
        from dispatchai.cli.call import Elsewhere
        from dispatchai.cli.call import call as run_call

        return await run_call(
            files,
            from_number=from_number,
            settings=settings,
            speed=speed,
            console_url=console_url,
            elsewhere=Elsewhere(gateway_url, carrier, signing_key),
            as_json=as_json,
            faults=line,
        )

    use_uvloop()
    run_and_exit(run())


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

    run_and_exit(run())


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

    path = file or settings_of("rules").rules_file or DEFAULT_PATH
    loaded = Rules.load(path)
    say(f"{path}: version {loaded.version}, {len(loaded.rules)} rules, {len(loaded.questions)} questions")


@main.group()
def topics() -> None:
    """Create or show the topics of topics.yaml."""


@topics.command("apply")
@click.option(
    "--allow-drift",
    is_flag=True,
    help="Exit code 0 although settings of topics differ. A different number of partitions is 1 all the same.",
)
def topics_apply(allow_drift: bool) -> None:
    """Create the missing topics.

    Reports what differs from topics.yaml, without changing it (exit code 1).
    """
    settings = settings_of("topics")

    async def run() -> int:
        from dispatchai.cli.topics import render_report
        from dispatchai.kafka.admin import apply
        from dispatchai.kafka.topics import Topics

        report = await apply(kafka_of(settings), Topics.load(settings.topics_file), settings.kafka_replication_factor)
        say(render_report(report))
        return int(report.splits_calls) if allow_drift else report.exit_code

    run_and_exit(on_kafka(run()))


@topics.command("upgrade")
def topics_upgrade() -> None:
    """Create the missing topics, and copy the packets of an older version's queue to the topic packets.

    The workers then purge the queue. Running it again copies nothing twice. Exit code as that of `topics apply`.
    """
    settings = settings_of("topics")

    async def run() -> int:
        from dispatchai.cli.topics import render_copied, render_report
        from dispatchai.kafka.admin import apply
        from dispatchai.kafka.packet_history import copy_packets
        from dispatchai.kafka.topics import Topics

        report = await apply(kafka_of(settings), Topics.load(settings.topics_file), settings.kafka_replication_factor)
        say(render_report(report))
        say(render_copied(await copy_packets(kafka_of(settings))))
        return report.exit_code

    run_and_exit(on_kafka(run()))


@topics.command("show")
def topics_show() -> None:
    """List the topics as the cluster has them.

    With partitions, policy, retention and offsets.
    """
    settings = settings_of("topics")

    async def run() -> int:
        from dispatchai.cli.topics import render_show
        from dispatchai.kafka.admin import show
        from dispatchai.kafka.topics import Topics

        say(render_show(await show(kafka_of(settings), Topics.load(settings.topics_file))))
        return 0

    run_and_exit(on_kafka(run()))


main.add_command(dead_letters)


if __name__ == "__main__":
    sys.exit(main())
