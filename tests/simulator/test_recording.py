"""Claims about the simulated caller's audio: which WAV files it can be read from, and how."""

from __future__ import annotations

import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatchai.audio.g711 import MULAW, encode_mulaw
from dispatchai.simulator import AudioFileError, load


def wav(data: bytes, *, tag: int = 1, channels: int = 1, rate: int = 8000, bits: int = 16, extra: bytes = b"") -> bytes:
    block = channels * bits // 8
    form = struct.pack("<HHIIHH", tag, channels, rate, rate * block, block, bits) + extra
    chunks = b"fmt " + struct.pack("<I", len(form)) + form + b"LIST" + struct.pack("<I", 3) + b"abc\0"
    chunks += b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


def tone(rate: int, seconds: float = 0.5, hz: float = 440.0, level: float = 0.5) -> np.ndarray[Any, Any]:
    return level * np.sin(2 * np.pi * hz * np.arange(int(rate * seconds)) / rate)


def pcm(samples: np.ndarray[Any, Any], bits: int) -> bytes:
    if bits == 24:
        return b"".join(int(v).to_bytes(3, "little", signed=True) for v in np.rint(samples * (2**23 - 1)))
    scaled = samples * 127 + 128 if bits == 8 else samples * (2 ** (bits - 1) - 1)
    encoded: bytes = np.rint(scaled).astype("u1" if bits == 8 else f"<i{bits // 8}").tobytes()
    return encoded


def saved(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 44100, 48000])
@pytest.mark.parametrize("bits", [8, 16, 24, 32])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_recording_in_any_pcm_format_becomes_the_same_audio(
    tmp_path: Path, rate: int, bits: int, channels: int
) -> None:
    samples = np.repeat(tone(rate), channels)
    caller = load(saved(tmp_path / "a.wav", wav(pcm(samples, bits), rate=rate, bits=bits, channels=channels)))
    assert (caller.frames, caller.seconds, len(caller.pcmu)) == (25, 0.5, 4000)
    heard = MULAW[np.frombuffer(caller.pcmu, np.uint8)] / 32768
    middle = slice(200, 3800)  # the filter starts and ends in silence
    error = heard[middle] - tone(8000)[middle]
    assert np.sqrt(np.mean(error**2)) < 0.01


def test_frequencies_above_the_telephones_are_filtered_without_aliasing(tmp_path: Path) -> None:
    caller = load(saved(tmp_path / "a.wav", wav(pcm(tone(44100, hz=6000), 16), rate=44100)))
    heard = MULAW[np.frombuffer(caller.pcmu, np.uint8)][200:3800] / 32768
    assert np.sqrt(np.mean(heard**2)) < 0.005


def test_mulaw_is_used_byte_by_byte_and_padded(tmp_path: Path) -> None:
    payload = bytes(range(256)) + b"\x7f"
    caller = load(saved(tmp_path / "a.wav", wav(payload, tag=7, bits=8)))
    assert caller.pcmu == payload + b"\xff" * (320 - 257)


def test_eight_kilohertz_pcm_is_only_encoded(tmp_path: Path) -> None:
    samples = np.linspace(-32768, 32767, 1600).astype(np.int16)
    assert load(saved(tmp_path / "a.wav", wav(samples.tobytes()))).pcmu == encode_mulaw(samples)


def test_an_extensible_header_and_an_unknown_length_are_understood(tmp_path: Path) -> None:
    extra = struct.pack("<HHIH", 22, 16, 0, 1) + bytes(14)
    content = wav(pcm(tone(8000), 16), tag=0xFFFE, extra=extra)
    at = content.index(b"data") + 4
    streamed = content[:at] + b"\xff\xff\xff\xff" + content[at + 4 :]
    whole, open_ended = (load(saved(tmp_path / "a.wav", each)) for each in (content, streamed))
    assert whole == open_ended
    assert whole.frames == 25


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"ID3 some music", "is not a WAV file"),
        (b"RIFF\0\0\0\0WAVE", "has no data"),
        (wav(b""), "holds no audio"),
        (wav(bytes(100), tag=3, bits=32), "not understood"),
        (wav(bytes(100), tag=85, bits=0), "not understood"),
        (wav(bytes(100), bits=12), "not understood"),
        (wav(bytes(100), rate=100), "at 100 Hz"),
        (wav(bytes(100), channels=0), "0 channels"),
        (wav(bytes(100))[:24], "broken|no data"),
        (b"RIFF\0\0\0\0WAVEdata\4\0\0\0abcd", "before their format"),
    ],
)
def test_a_file_that_cannot_be_played_is_explained(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(AudioFileError, match=message) as caught:
        load(saved(tmp_path / "caller.wav", content))
    assert "caller.wav" in str(caught.value)


def test_a_missing_file_is_explained(tmp_path: Path) -> None:
    with pytest.raises(AudioFileError, match=r"cannot read .*none\.wav: No such file"):
        load(tmp_path / "none.wav")


@given(st.binary(max_size=300), st.booleans())
def test_no_bytes_make_the_reader_raise_another_error(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, headed: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "noise.wav"
    with suppress(AudioFileError):
        load(saved(path, b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0" + noise if headed else noise))
