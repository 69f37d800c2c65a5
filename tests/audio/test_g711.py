"""The telephone codecs are those of ITU-T G.711."""

from __future__ import annotations

import shutil
import subprocess

import numpy as np
import pytest

from dispatchai.audio import g711

ALL_CODES = bytes(range(256))
ALL_SAMPLES = np.arange(-32768, 32768, dtype=np.int16)


def test_the_mulaw_table_has_the_values_of_table_2a() -> None:
    # G.711 table 2a/2b: the decision values' outputs at the segment ends, ×4 for 16 bits.
    assert g711.MULAW[0x80] == 8031 * 4
    assert g711.MULAW[0x00] == -8031 * 4
    assert g711.MULAW[0xFF] == 0
    assert g711.MULAW[0x7F] == 0
    assert g711.MULAW[0xF0] == 30 * 4
    assert g711.MULAW[0xEF] == 33 * 4


def test_the_alaw_table_has_the_values_of_table_1a() -> None:
    # G.711 table 1a: smallest output 1, largest 4032, in the 13-bit scale; ×8 for 16 bits. Even bits are inverted.
    assert g711.ALAW[0xD5] == 1 * 8
    assert g711.ALAW[0x55] == -1 * 8
    assert g711.ALAW[0xAA] == 4032 * 8
    assert g711.ALAW[0x2A] == -4032 * 8


@pytest.mark.parametrize(("encoding", "name"), [("PCMU", "mulaw"), ("PCMA", "alaw")])
def test_all_256_codes_decode_as_ffmpeg_decodes_them(encoding: str, name: str) -> None:
    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg is None:
        pytest.skip("ffmpeg is not installed")
    command = [ffmpeg, "-loglevel", "error", "-f", name, "-ar", "8000", "-ac", "1", "-i", "-", "-f", "s16le", "-"]
    theirs = subprocess.run(command, input=ALL_CODES, stdout=subprocess.PIPE, check=True).stdout
    assert g711.decode(encoding, ALL_CODES).tolist() == np.frombuffer(theirs, "<i2").tolist()


def test_a_code_survives_decoding_and_encoding() -> None:
    assert g711.encode_alaw(g711.ALAW) == ALL_CODES
    # µ-law has two zeros; linear samples have one.
    assert g711.encode_mulaw(g711.MULAW) == ALL_CODES.replace(b"\x7f", b"\xff")


@pytest.mark.parametrize(("table", "encode"), [(g711.MULAW, g711.encode_mulaw), (g711.ALAW, g711.encode_alaw)])
def test_encoding_is_as_close_as_the_segment_allows_and_rises_with_the_sample(
    table: g711.Samples, encode: object
) -> None:
    assert callable(encode)
    decoded = table[np.frombuffer(encode(ALL_SAMPLES), np.uint8)].astype(np.int32)
    assert (np.diff(decoded) >= 0).all()
    # The widest step of either law is 1024 in 16 bits; what lies beyond the last code is clipped to it.
    inside = np.abs(ALL_SAMPLES.astype(np.int32)) <= 32124
    error = np.abs(decoded - ALL_SAMPLES)[inside]
    assert (error <= np.maximum(np.abs(ALL_SAMPLES.astype(np.int32))[inside] / 16, 16)).all()


def test_what_cannot_be_decoded_is_refused_with_its_name() -> None:
    with pytest.raises(ValueError, match="G722"):
        g711.decode("G722", b"")
    with pytest.raises(ValueError, match="3 bytes"):
        g711.decode("L16", b"abc")
