"""Check of the speech engine: whether its model loads on this machine."""

from __future__ import annotations

import asyncio
import time

from dispatchai.cli.doctor.result import Check, Limits, Result, fail, ok, warn
from dispatchai.settings import Settings, SpeechEngine
from dispatchai.speech.engines import recognizer
from dispatchai.speech.errors import RecognizerError


async def check_speech_model(settings: Settings, limits: Limits) -> Result:
    """Whether the speech engine starts on this machine."""
    check = Check.SPEECH_MODEL
    if settings.speech_engine is SpeechEngine.SCRIPTED:
        return warn(check, "SPEECH_ENGINE=scripted recognises only the recordings of the tests", "unset SPEECH_ENGINE")
    started = time.monotonic()
    try:
        engine = recognizer(settings.model_copy(update={"speech_processes": 1}))
        try:
            async with asyncio.timeout(limits.speech_s):
                await engine.start()
        finally:
            await engine.close()
    except RecognizerError as error:
        return fail(check, str(error), "install the package again: it contains the model")
    except TimeoutError:
        return fail(
            check, f"not loaded after {limits.speech_s:g} s", "check the free memory: a process needs about 300 MB"
        )
    return ok(check, f"{engine.name} loads in {time.monotonic() - started:.0f} s")
