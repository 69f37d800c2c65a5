"""`dispatchai demo`: everything on this machine, and three recorded callers who call in at the same time."""

from __future__ import annotations

import asyncio
from typing import Final

import click

from dispatchai.cli.call import call
from dispatchai.cli.up import UpError, up
from dispatchai.settings import Settings
from dispatchai.speech.engines import RECORDINGS

CALLERS: Final = ("noise_complaint.wav", "kitchen_fire.wav", "cardiac_arrest.wav")
"""In the order in which they call: the one to be ranked first calls last."""


async def demo(settings: Settings, *, leave: bool, as_json: bool) -> int:
    """Run the demonstration; returns the exit code. `leave` ends it when the packets are there. Raises UpError."""
    if not settings.carrier_is_simulated:
        click.echo("dispatchai: TELNYX_API_KEY is set: the demonstration plays the carrier, so unset it", err=True)
        return 2
    if "log_level" not in settings.model_fields_set:
        # What the processes log at INFO would bury what the callers do.
        settings = settings.model_copy(update={"log_level": "WARNING"})
    async with up(settings, click.echo) as running:
        click.echo(f"\nthe page is {running.info.console_url}/ - three people are calling in\n")
        failed = asyncio.create_task(running.failure())
        calling = asyncio.create_task(call([RECORDINGS / name for name in CALLERS], settings=settings, as_json=as_json))
        try:
            await asyncio.wait([calling, failed], return_when=asyncio.FIRST_COMPLETED)
            if calling.done() and leave:
                return calling.result()
            if calling.done():
                click.echo(f"\nthe page stays up: {running.info.console_url}/   Ctrl-C stops everything")
            raise UpError(await failed)
        finally:
            for task in (calling, failed):
                task.cancel()
            await asyncio.gather(calling, failed, return_exceptions=True)
