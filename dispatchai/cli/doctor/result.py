"""The result of a check: its name, its verdict, what was seen and what to do; and how results are printed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import click

from dispatchai.cli.printing import printable_json, printable_lines


class Check(StrEnum):
    """What is checked, in the order in which it is shown."""

    SETTINGS = "settings"
    ENV_FILE = "env-file"
    STATE_DIR = "state-dir"
    RULES = "rules"
    TOPICS_FILE = "topics-file"
    API_KEY = "api-key"
    WEBHOOK_KEY = "webhook-key"
    STREAM_TOKEN = "stream-token"  # noqa: S105 - the name of a check
    PUBLIC_URLS = "public-urls"
    KAFKA = "kafka"
    BROKERS = "brokers"
    TOPICS = "topics"
    DURABILITY = "durability"
    GATEWAY = "gateway"
    CONSOLE = "console"
    WORKER = "worker"
    SPEECH = "speech"
    CARRIER_PORT = "carrier-port"
    TELNYX_API = "telnyx-api"
    TELNYX_APP = "telnyx-app"
    CLOCK = "clock"
    WEBHOOK = "webhook"
    MEDIA = "media"
    SPEECH_MODEL = "speech-model"


class Verdict(StrEnum):
    """How a check ended."""

    OK = "OK"
    WARN = "WARN"
    """It works, but is not fit for production."""
    FAIL = "FAIL"
    """Calls are not taken, or not taken correctly."""
    SKIPPED = "SKIPPED"
    """Not checked; `seen` says why."""


@dataclass(frozen=True, slots=True)
class Result:
    """One finding. `todo` says what to do; it is empty if there is nothing to do."""

    check: Check
    verdict: Verdict
    seen: str
    todo: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long the checks may take, in seconds."""

    request_s: float = 8.0
    """One HTTP request, name resolution and TLS included: four times as long as the carrier waits."""
    kafka_s: float = 10.0
    """One exchange with a broker."""
    speech_s: float = 90.0
    """Loading the speech model: it takes a few seconds, or minutes on a machine that is short of memory."""


def ok(check: Check, seen: str) -> Result:
    return Result(check, Verdict.OK, seen)


def warn(check: Check, seen: str, todo: str) -> Result:
    return Result(check, Verdict.WARN, seen, todo)


def fail(check: Check, seen: str, todo: str) -> Result:
    return Result(check, Verdict.FAIL, seen, todo)


def skipped(check: Check, seen: str) -> Result:
    return Result(check, Verdict.SKIPPED, seen)


def exit_code(results: Iterable[Result]) -> int:
    """1 if a check failed, else 0."""
    return int(any(result.verdict is Verdict.FAIL for result in results))


_COLOURS: Final = {Verdict.OK: "green", Verdict.WARN: "yellow", Verdict.FAIL: "red", Verdict.SKIPPED: "bright_black"}


def render(results: Sequence[Result], *, colours: bool) -> str:
    """The results as lines for a terminal: what was seen and, under a fault, what to do. Without a final newline."""
    width = max(len(result.check) for result in results)
    badge_width = max(len(verdict) for verdict in Verdict)
    indent = " " * (badge_width + width + 4)
    lines = []
    for result in results:
        badge = result.verdict.ljust(badge_width)
        if colours:
            badge = click.style(badge, fg=_COLOURS[result.verdict], bold=result.verdict is Verdict.FAIL)
        lines.append(f"{badge}  {result.check:<{width}}  {printable_lines(result.seen)}")
        if result.todo:
            lines.append(f"{indent}-> {printable_lines(result.todo)}")
    counts = {verdict: sum(result.verdict is verdict for result in results) for verdict in Verdict}
    lines.append(", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count))
    return "\n".join(lines)


def as_json(results: Sequence[Result]) -> str:
    """The results for programs: ``{"ok": bool, "results": [{"check", "verdict", "seen", "todo"}]}``."""
    body = {
        "ok": exit_code(results) == 0,
        "results": [
            {"check": result.check, "verdict": result.verdict, "seen": result.seen, "todo": result.todo}
            for result in results
        ],
    }
    return printable_json(body)
