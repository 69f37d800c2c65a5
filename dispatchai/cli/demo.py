"""`dispatchai demo`: runs the system on this machine, with three recorded callers who call in at the same time.

Decides which callers call. `up` runs the processes and `call` places the calls.
"""

from __future__ import annotations

import asyncio
from typing import Final

from dispatchai.cli.call import call
from dispatchai.cli.common import say
from dispatchai.cli.errors import UnusableError
from dispatchai.cli.up import UpError, up
from dispatchai.settings import Settings
from dispatchai.speech.engines import RECORDINGS

CALLERS: Final = ("noise_complaint.wav", "kitchen_fire.wav", "cardiac_arrest.wav")
"""In the order in which they call: the one who is ranked first calls last."""


async def demo(settings: Settings, *, leave: bool, as_json: bool) -> int:
    """Run the demonstration and return the exit code. With `leave` it ends when the packets are there.

    Raises CliError.
    """
    if not settings.carrier_is_simulated:
        raise UnusableError("TELNYX_API_KEY is set: unset it, because the demonstration plays the carrier itself")
    if "log_level" not in settings.model_fields_set:
        # The processes' lines at INFO would hide the progress of the callers.
        settings = settings.model_copy(update={"log_level": "WARNING"})
    async with up(settings, say) as running:
        say(f"\nthe page is {running.info.console_url}/ - three people are calling in\n")
        failed = asyncio.create_task(running.failure())
        calling = asyncio.create_task(call([RECORDINGS / name for name in CALLERS], settings=settings, as_json=as_json))
        try:
            await asyncio.wait([calling, failed], return_when=asyncio.FIRST_COMPLETED)
            if calling.done() and (leave or calling.exception() is not None):
                return calling.result()
            if calling.done():
                say(f"\nthe page stays up: {running.info.console_url}/   Ctrl-C stops everything")
            raise UpError(await failed)
        finally:
            for task in (calling, failed):
                task.cancel()
            await asyncio.gather(calling, failed, return_exceptions=True)
