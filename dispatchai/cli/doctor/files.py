"""Checks of the files that an operator may replace: the rules of triage, and the list of topics."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

import aiohttp
from yarl import URL

from dispatchai.cli.doctor.result import Check, Result, fail, ok, warn
from dispatchai.kafka.topics import Topics, TopicsFileError
from dispatchai.process.metrics import PATH as METRICS_PATH
from dispatchai.settings import Settings
from dispatchai.triage.errors import RulesError
from dispatchai.triage.rules import DEFAULT_PATH, Rules

_VERSION: Final = re.compile(r'^dispatchai_rules_info\{[^}]*version="([^"]*)"', re.MULTILINE)


def check_rules_file(settings: Settings) -> Result:
    """Whether a worker can read the rules."""
    path = settings.rules_file or DEFAULT_PATH
    try:
        rules = Rules.load(path)
    except RulesError as error:
        return fail(Check.RULES, str(error), "correct the file; `dispatchai rules check` reads it as a worker does")
    return ok(Check.RULES, f"{path}: version {rules.version}, {len(rules.rules)} rules")


def check_topics_file(settings: Settings) -> Result:
    """Whether the processes can read the list of topics."""
    try:
        topics = Topics.load(settings.topics_file)
    except TopicsFileError as error:
        return fail(Check.TOPICS_FILE, str(error), "correct the file, or leave TOPICS_FILE empty")
    where = settings.topics_file or "the list that ships with the program"
    return ok(Check.TOPICS_FILE, f"{where}: {len(topics.every_topic())} topics and changelogs")


async def rules_of(http: aiohttp.ClientSession, worker: URL) -> str | None:
    """The version of the rules by which the worker triages; None if it does not say so."""
    try:
        async with http.get(worker / METRICS_PATH.lstrip("/")) as reply:
            found = _VERSION.search(await reply.text()) if reply.status == 200 else None
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
        return None
    return found and found[1]


def check_rules_of_workers(settings: Settings, found: Mapping[URL, str | None]) -> Sequence[Result]:
    """Whether all workers that answer triage by the same rules, and by those of this machine."""
    by_version: dict[str, list[str]] = {}
    for worker, version in found.items():
        if version is not None:
            by_version.setdefault(version, []).append(f"{worker.host}:{worker.port}")
    if not by_version:
        return ()
    if len(by_version) > 1:
        seen = "; ".join(f"{version} at {', '.join(workers)}" for version, workers in sorted(by_version.items()))
        todo = "give all workers the same rules and restart those with the old ones: until then equal calls rank apart"
        return (warn(Check.RULES, f"workers triage by different rules: {seen}", todo),)
    (version,) = by_version
    try:
        here = Rules.load(settings.rules_file).version
    except RulesError:
        return ()  # `check_rules_file` says so
    if version != here:
        seen = f"the workers triage by version {version}, the file here is version {here}"
        return (warn(Check.RULES, seen, "restart the workers, or run the doctor with their RULES_FILE"),)
    return (ok(Check.RULES, f"every worker that answers triages by version {version}"),)
