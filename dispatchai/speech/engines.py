"""Chooses the recogniser by the settings."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from dispatchai.settings import Settings, SpeechEngine
from dispatchai.speech.moonshine import MoonshineRecognizer
from dispatchai.speech.recognizer import Recognizer
from dispatchai.speech.scripted import ScriptedRecognizer, load_script

RECORDINGS: Final = Path(__file__).resolve().parent.parent / "recordings"
"""The caller recordings that ship with the package, and the texts of the scripted recogniser for them."""


def recognizer(settings: Settings) -> Recognizer:
    """The engine, not started. Raises RecognizerError if its files are broken."""
    match settings.speech_engine:
        case SpeechEngine.MOONSHINE:
            return MoonshineRecognizer(settings.speech_processes, settings.speech_update_ms)
        case SpeechEngine.SCRIPTED:
            return ScriptedRecognizer(load_script(RECORDINGS / "script.json"), settings.speech_update_ms)
