"""The scripted engine and the shipped recordings."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest
import yaml

from dispatchai.settings import Settings, SpeechEngine
from dispatchai.speech.engines import RECORDINGS, recognizer
from dispatchai.speech.errors import RecognizerError
from dispatchai.speech.moonshine import MoonshineRecognizer
from dispatchai.speech.recognizer import AudioFormat, Ended, Event, Hypothesis, StreamKey
from dispatchai.speech.scripted import ScriptedRecognizer, load_script
from tests.speech.audio import chunks, pcmu, quiet, recording, tone
from tests.support.paths import ROOT

NAMES = ("cardiac_arrest", "kitchen_fire", "noise_complaint")
TEXTS = ROOT / "scripts" / "recordings"
KEY = StreamKey("call", "s1")
PCMU = AudioFormat("PCMU", 8000)


async def hear(engine: ScriptedRecognizer, audio: bytes, size: int = 160, start_ms: int = 0) -> list[Event]:
    stream = engine.open(KEY, PCMU, start_ms)
    for part in chunks(audio, size):
        stream.feed(part)
    stream.finish()
    events = []
    async for event in engine.events():
        events.append(event)
        if isinstance(event, Ended):
            break
    return events


def finals(events: list[Event]) -> list[Hypothesis]:
    return [event for event in events if isinstance(event, Hypothesis) and event.final]


@pytest.mark.parametrize("name", NAMES)
async def test_the_shipped_script_has_the_words_of_the_callers(name: str) -> None:
    engine = recognizer(Settings(_env_file=None, speech_engine=SpeechEngine.SCRIPTED))
    assert isinstance(engine, ScriptedRecognizer)
    said = [line["text"] for line in yaml.safe_load((TEXTS / f"{name}.yaml").read_text())["lines"]]
    assert [final.text for final in finals(await hear(engine, recording(name)))] == said


async def test_the_words_do_not_depend_on_how_the_audio_is_cut() -> None:
    audio = pcmu(quiet(200), tone(700, 1), quiet(500), tone(900, 2), quiet(500))
    first = finals(await hear(ScriptedRecognizer(), audio))
    assert len(first) == 2
    assert first[0].text != first[1].text
    assert finals(await hear(ScriptedRecognizer(), audio, size=333)) == first
    words = first[0].words
    assert " ".join(word.text for word in words) == first[0].text
    assert (words[0].start_ms, words[-1].end_ms) == (first[0].start_ms, first[0].end_ms) == (200, 900)


async def test_times_count_from_the_origin_of_the_audio() -> None:
    audio = pcmu(quiet(200), tone(700, 1))
    [final] = finals(await hear(ScriptedRecognizer(), audio, start_ms=5000))
    assert (final.start_ms, final.end_ms) == (5200, 5900)


async def test_a_cancelled_stream_delivers_nothing_not_even_waiting_events() -> None:
    engine = ScriptedRecognizer()
    stream = engine.open(KEY, PCMU)
    stream.feed(pcmu(tone(500), quiet(500)))
    stream.cancel()
    await engine.close()
    assert [event async for event in engine.events()] == []


@pytest.mark.parametrize("content", ["", "[]", '{"a": 1}', '{"a": ""}'])
def test_a_broken_script_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "script.json"
    path.write_text(content)
    with pytest.raises(RecognizerError):
        load_script(path)


async def test_the_settings_choose_the_engine() -> None:
    assert isinstance(recognizer(Settings(_env_file=None)), MoonshineRecognizer)


@pytest.mark.parametrize("name", NAMES)
def test_a_recording_is_telephone_audio_of_a_caller(name: str) -> None:
    path = RECORDINGS / f"{name}.wav"
    assert path.stat().st_size < 450_000
    with wave.open(str(path)) as file:
        assert (file.getframerate(), file.getsampwidth(), file.getnchannels()) == (8000, 2, 1)
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32768
    assert 15 <= len(samples) / 8000 <= 25
    power = np.abs(np.fft.rfft(samples)) ** 2
    frequency = np.fft.rfftfreq(len(samples), 1 / 8000)
    assert power[(frequency < 250) | (frequency > 3600)].sum() < 0.01 * power.sum()


def loudness(name: str) -> tuple[float, float]:
    """The root mean squares of the first and the last third of the voiced part."""
    with wave.open(str(RECORDINGS / f"{name}.wav")) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32768
    frames = samples[: len(samples) // 160 * 160].reshape(-1, 160)
    rms = np.sqrt(np.mean(frames**2, axis=1))
    voiced = rms[rms >= 0.02]
    third = len(voiced) // 3
    return float(voiced[:third].mean()), float(voiced[-third:].mean())


def test_the_callers_sound_different() -> None:
    calm, panic, anger = (loudness(name) for name in NAMES)
    assert max(calm) < 0.1 < min(anger), "calm is quiet, anger is loud from the first word"
    assert panic[1] > 1.5 * panic[0], "panic rises"
