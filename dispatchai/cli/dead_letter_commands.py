"""The subcommands of `dispatchai dead-letters`: their arguments, options and help. `dead_letters` does the work."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable
from typing import Any

import click

from dispatchai.cli.common import kafka_of, on_kafka, run_and_exit, settings_of
from dispatchai.cli.errors import UnusableError


@click.group("dead-letters")
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
@click.option("--dismissed", is_flag=True, help="Show also the records that were dismissed.")
@click.option("--json", "as_json", is_flag=True, help="Print the records as JSON.")
def dead_letters_list(wanted: Any, limit: int, dismissed: bool, as_json: bool) -> None:
    """List the records that could not be processed, the newest first."""
    settings = settings_of("dead-letters")

    async def run() -> int:
        from dispatchai.cli.dead_letters import list_dead_letters

        return await list_dead_letters(
            kafka_of(settings), wanted, limit, dismissed=dismissed, as_json=as_json, out=sys.stdout, err=sys.stderr
        )

    run_and_exit(on_kafka(run()))


@dead_letters.command("show")
@click.argument("record", type=_Place())
@click.option("--content", is_flag=True, help="Show what callers said, their numbers, and bytes that are not a record.")
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON.")
def dead_letters_show(record: Any, content: bool, as_json: bool) -> None:
    """Show a RECORD, given as TOPIC/PARTITION/OFFSET: each reader's error, headers and value."""
    settings = settings_of("dead-letters")

    async def run() -> int:
        from dispatchai.cli.dead_letters import show_dead_letter

        return await show_dead_letter(
            kafka_of(settings), record, content=content, as_json=as_json, out=sys.stdout, err=sys.stderr
        )

    run_and_exit(on_kafka(run()))


def _need_records_or_all(records: tuple[Any, ...], every: bool, wanted: Any) -> None:
    """Raise UnusableError unless either records are named or --all is given, and filters come with --all."""
    from dispatchai.kafka.dead_letter_store import Filter

    if every == bool(records):
        raise UnusableError("name records as `dead-letters list` shows them, or give --all")
    if records and wanted != Filter():
        raise UnusableError("--topic, --reader, --since and --until need --all")


def _asking(*, yes: bool) -> Callable[[str], bool]:
    """Asks a question on the terminal; with `yes` the answer is given. Raises UnusableError without a terminal."""

    def confirm(question: str) -> bool:
        if not yes and not sys.stdin.isatty():
            raise UnusableError("there is no terminal to ask on: give --yes")
        return yes or click.confirm(question)

    return confirm


@dead_letters.command("retry")
@click.argument("records", nargs=-1, type=_Place())
@click.option("--all", "every", is_flag=True, help="All open records that match the other options.")
@_filters
@click.option(
    "--unconfirmed",
    is_flag=True,
    help="Send also RECORDS that their topics have deleted, as their dead letters have them. Look at them first.",
)
@click.option("--yes", is_flag=True, help="Send without asking.")
def dead_letters_retry(records: tuple[Any, ...], every: bool, wanted: Any, unconfirmed: bool, yes: bool) -> None:
    """Send RECORDS to their topics again. Their dead letters are kept. See docs/dead-letters.md for the effects."""
    _need_records_or_all(records, every, wanted)
    if unconfirmed and every:
        raise UnusableError("--unconfirmed needs records that are named: look at each with `dead-letters show`")
    settings = settings_of("dead-letters")

    async def run() -> int:
        from dispatchai.cli.dead_letters import retry_dead_letters

        return await retry_dead_letters(
            kafka_of(settings),
            settings,
            records,
            wanted,
            unconfirmed=unconfirmed,
            confirm=_asking(yes=yes),
            out=sys.stdout,
            err=sys.stderr,
        )

    run_and_exit(on_kafka(run()))


@dead_letters.command("dismiss")
@click.argument("records", nargs=-1, type=_Place())
@click.option("--all", "every", is_flag=True, help="All open records that match the other options.")
@_filters
@click.option("--reason", required=True, help="Why nothing more is needed of them. It is kept with them.")
@click.option("--yes", is_flag=True, help="Dismiss --all without asking.")
def dead_letters_dismiss(records: tuple[Any, ...], every: bool, wanted: Any, reason: str, yes: bool) -> None:
    """Note that nothing more is needed of RECORDS.

    Nothing is deleted; `list` leaves them out unless asked. A record that fails again after a retry is open again.
    """
    _need_records_or_all(records, every, wanted)
    if not reason.strip():
        raise UnusableError("--reason must not be empty")
    settings = settings_of("dead-letters")

    async def run() -> int:
        from dispatchai.cli.dead_letters import dismiss_dead_letters

        return await dismiss_dead_letters(
            kafka_of(settings),
            records,
            wanted,
            reason.strip(),
            confirm=_asking(yes=yes),
            out=sys.stdout,
            err=sys.stderr,
        )

    run_and_exit(on_kafka(run()))
