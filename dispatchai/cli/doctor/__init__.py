"""`dispatchai doctor`: checks what a deployment needs, and says what to do about each fault.

Decides what is checked and what counts as a fault. Changes nothing: it creates no topic and places no call, and the one
webhook that it sends has no signature, so the gateway must refuse it. No secret is in a result.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from pathlib import Path

import aiohttp

from dispatchai.cli.doctor.files import check_rules_file, check_topics_file
from dispatchai.cli.doctor.kafka import check_durability, check_kafka, check_topics
from dispatchai.cli.doctor.processes import check_carrier_port, check_processes
from dispatchai.cli.doctor.public import check_media, check_webhook
from dispatchai.cli.doctor.result import Check, Limits, Result, Verdict, as_json, exit_code, fail, ok, render, skipped
from dispatchai.cli.doctor.settings import check_env_file, check_keys, check_state_dir, check_urls, settings_failed
from dispatchai.cli.doctor.speech import check_speech_model
from dispatchai.cli.doctor.telnyx import check_application, check_clock, check_telnyx
from dispatchai.process.run_info import RunInfo, RunInfoError
from dispatchai.settings import Settings


async def examine(
    settings: Settings, env_files: Sequence[Path] = (Path(".env"),), limits: Limits | None = None
) -> tuple[Result, ...]:
    """Run every check. The results are in the order of `Check`. No fault of a deployment raises an error."""
    limits = limits or Limits()
    results = [
        ok(Check.SETTINGS, "every setting has a valid value"),
        *(check_env_file(path) for path in env_files),
        *check_keys(settings),
        *check_urls(settings),
        check_rules_file(settings),
        check_topics_file(settings),
    ]
    try:
        run = RunInfo.load(settings.state_dir)
    except RunInfoError as error:
        run = None
        results.append(fail(Check.STATE_DIR, str(error), "delete the file and start `dispatchai up` again"))
    else:
        results.append(check_state_dir(settings.state_dir))
    timeout = aiohttp.ClientTimeout(total=limits.request_s)
    # Connections are not reused: one that the server closes late would look like a fault of the next check.
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(force_close=True)) as http:
        groups = await asyncio.gather(
            check_kafka(settings, run, limits),
            check_processes(http, settings, run),
            check_telnyx(http, settings),
            _one(check_webhook(http, settings)),
            _one(check_media(http, settings)),
        )
    for group in groups:
        results.extend(group)
    runs_here = any(result.check is Check.SPEECH and result.verdict is Verdict.OK for result in results)
    results.append(
        skipped(Check.SPEECH_MODEL, "the speech process on this machine has loaded it")
        if runs_here
        else await check_speech_model(settings, limits)
    )
    order = list(Check)
    return tuple(sorted(results, key=lambda result: order.index(result.check)))


async def _one(check: Awaitable[Result]) -> list[Result]:
    return [await check]


__all__ = [
    "Check",
    "Limits",
    "Result",
    "Verdict",
    "as_json",
    "check_application",
    "check_carrier_port",
    "check_clock",
    "check_durability",
    "check_env_file",
    "check_kafka",
    "check_keys",
    "check_media",
    "check_processes",
    "check_speech_model",
    "check_state_dir",
    "check_telnyx",
    "check_topics",
    "check_urls",
    "check_webhook",
    "examine",
    "exit_code",
    "render",
    "settings_failed",
]
