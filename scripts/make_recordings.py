"""Makes the caller recordings of the demo from `scripts/recordings/*.yaml` with flite and sox.

Decides how the callers sound. Writes `dispatchai/recordings/<name>.wav` (8 kHz, 16 bits, mono, telephone band) and
`dispatchai/recordings/script.json`, the text of the scripted recogniser for each sentence. Run it from the checkout:
`python scripts/make_recordings.py [name ...]`. It needs the Debian packages flite and sox.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import wave
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import yaml

from dispatchai.audio.g711 import MULAW, encode_mulaw
from dispatchai.speech.scripted import digest, voiced_runs

ROOT: Final = Path(__file__).resolve().parent.parent
TEXTS: Final = ROOT / "scripts" / "recordings"
RECORDINGS: Final = ROOT / "dispatchai" / "recordings"

SAMPLE_RATE: Final = 8000
FRAME: Final = SAMPLE_RATE // 50
"""Samples of a 20 ms frame. Sentences begin on a frame, so their digests do not depend on the carrier's framing."""

BAND: Final = "300-3400"
"""Telephone band in Hz."""

CEILING: Final = 0.97
"""Largest sample, of full scale. Louder sentences are compressed softly below it, as by a telephone."""

Samples = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Line:
    """A sentence: pitch shift in cents, tempo factor, level (RMS) in dB relative to full scale."""

    text: str
    pitch: int
    tempo: float
    level_db: float


@dataclass(frozen=True, slots=True)
class Caller:
    """A recording: a flite voice, its duration stretch, silences in ms, and the sentences."""

    voice: str
    stretch: float
    lead_ms: int
    gap_ms: int
    tail_ms: int
    lines: tuple[Line, ...]


def load(name: str) -> Caller:
    """The caller described in `scripts/recordings/<name>.yaml`."""
    raw = yaml.safe_load((TEXTS / f"{name}.yaml").read_text(encoding="utf-8"))
    return Caller(**{**raw, "lines": tuple(Line(**line) for line in raw["lines"])})


def speak(caller: Caller, line: Line, folder: Path) -> Samples:
    """The sentence at 8 kHz in the telephone band, at its level, without silence. Raises CalledProcessError."""
    spoken, shaped = folder / "spoken.wav", folder / "shaped.wav"
    flite = ["flite", "-voice", caller.voice, "--setf", f"duration_stretch={caller.stretch}", "-t", line.text]
    subprocess.run([*flite, "-o", str(spoken)], check=True, capture_output=True)  # noqa: S603
    effects = ["pitch", str(line.pitch), "tempo", "-s", str(line.tempo), "rate", "-v", str(SAMPLE_RATE), "sinc", BAND]
    trim = ["silence", "1", "0.02", "0.5%", "reverse", "silence", "1", "0.02", "0.5%", "reverse"]
    command = ["sox", "-D", str(spoken), "-b", "16", "-c", "1", str(shaped), "gain", "-6", *effects, *trim]
    subprocess.run(command, check=True, capture_output=True)  # noqa: S603
    with wave.open(str(shaped)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32768
    samples = samples * (10 ** (line.level_db / 20) / np.sqrt(np.mean(samples**2)))
    return CEILING * np.tanh(samples / CEILING)


def silence(milliseconds: int) -> Samples:
    """Digital silence, a whole number of frames."""
    return np.zeros(milliseconds * SAMPLE_RATE // 1000 // FRAME * FRAME)


def make(caller: Caller) -> npt.NDArray[np.int16]:
    """The whole recording, shape (n,)."""
    parts = [silence(caller.lead_ms)]
    with tempfile.TemporaryDirectory() as folder:
        for number, line in enumerate(caller.lines):
            sound = speak(caller, line, Path(folder))
            parts += [silence(caller.gap_ms)] if number else []
            parts += [sound, np.zeros(-len(sound) % FRAME)]
    parts.append(silence(caller.tail_ms))
    return np.round(np.concatenate(parts) * 32767).astype(np.int16)


def write(path: Path, samples: npt.NDArray[np.int16]) -> None:
    """Write `samples` as a WAV file."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(samples.astype("<i2").tobytes())


def script_of(caller: Caller, samples: npt.NDArray[np.int16]) -> dict[str, str]:
    """The sentence of each voiced run of the recording, by the digest of the run as it arrives in PCMU.

    Raises SystemExit if runs and sentences do not match one to one; then the gaps must be changed.
    """
    runs = voiced_runs(MULAW[np.frombuffer(encode_mulaw(samples), np.uint8)], SAMPLE_RATE)
    if len(runs) != len(caller.lines):
        raise SystemExit(f"{len(runs)} voiced runs for {len(caller.lines)} sentences: change the gaps")
    return {digest(run): line.text for run, line in zip(runs, caller.lines, strict=True)}


def main(names: list[str]) -> None:
    """Make the recordings `names`, or all, and the script of all."""
    RECORDINGS.mkdir(exist_ok=True)
    script: dict[str, str] = {}
    for path in sorted(TEXTS.glob("*.yaml")):
        caller = load(path.stem)
        target = RECORDINGS / f"{path.stem}.wav"
        if not names or path.stem in names:
            write(target, make(caller))
        with wave.open(str(target)) as file:
            samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.int16)
        script |= script_of(caller, samples)
        print(f"{target.relative_to(ROOT)}: {len(samples) / SAMPLE_RATE:.1f} s, {target.stat().st_size} bytes")
    (RECORDINGS / "script.json").write_text(json.dumps(script, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
