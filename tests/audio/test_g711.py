"""The telephone codecs are those of ITU-T G.711."""

from __future__ import annotations

import shutil
import subprocess

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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


@pytest.mark.parametrize(("encoding", "name"), [("PCMU", "u-law"), ("PCMA", "a-law")])
def test_all_256_codes_decode_as_sox_decodes_them(encoding: str, name: str) -> None:
    sox = shutil.which("sox")
    if sox is None:
        pytest.skip("sox is not installed")
    raw = ["-t", "raw", "-r", "8000", "-c", "1"]
    command = [sox, "-D", *raw, "-e", name, "-b", "8", "-", *raw, "-e", "signed", "-b", "16", "-L", "-"]
    theirs = subprocess.run(command, input=ALL_CODES, stdout=subprocess.PIPE, check=True).stdout
    assert g711.decode(encoding, ALL_CODES).tolist() == np.frombuffer(theirs, "<i2").tolist()


def ulaw_compress(sample: int) -> int:
    """One sample by ITU-T G.191's reference (`ulaw_compress` of the STL's G.711 module)."""
    # 14-bit magnitude in ones' complement, plus the bias of 33; clipped to 0x1FFF.
    absno = ((~sample >> 2) + 33) if sample < 0 else ((sample >> 2) + 33)
    absno = min(absno, 0x1FFF)
    segno = 1
    rest = absno >> 6
    while rest != 0:
        segno += 1
        rest >>= 1
    high_nibble = 0x0008 - segno
    low_nibble = 0x000F - ((absno >> segno) & 0x000F)
    code = (high_nibble << 4) | low_nibble
    return code | 0x0080 if sample >= 0 else code


def alaw_compress(sample: int) -> int:
    """One sample by ITU-T G.191's reference (`alaw_compress` of the STL's G.711 module)."""
    # 12-bit magnitude; for a negative value in ones' complement.
    ix = (~sample) >> 4 if sample < 0 else sample >> 4
    if ix > 15:
        iexp = 1
        while ix > 16 + 15:
            ix >>= 1
            iexp += 1
        ix -= 16
        ix += iexp << 4
    if sample >= 0:
        ix |= 0x0080
    return ix ^ 0x0055


def test_all_65536_samples_encode_as_the_reference_of_g191_encodes_them() -> None:
    samples = ALL_SAMPLES.tolist()
    assert g711.encode_mulaw(ALL_SAMPLES) == bytes(map(ulaw_compress, samples))
    assert g711.encode_alaw(ALL_SAMPLES) == bytes(map(alaw_compress, samples))


def test_linear_audio_is_read_in_its_byte_order() -> None:
    assert g711.decode("L16", b"\x01\x00\xff\x7f\x00\x80").tolist() == [1, 32767, -32768]
    assert g711.decode("L16BE", b"\x00\x01\x7f\xff\x80\x00").tolist() == [1, 32767, -32768]
    assert g711.decode("L16BE", b"\x00\x01").dtype == np.int16


@given(st.sampled_from(sorted(g711.DECODABLE)), st.binary(max_size=900))
def test_a_payload_of_any_length_decodes_without_its_half_sample(encoding: str, payload: bytes) -> None:
    whole = g711.whole_samples(encoding, payload)
    assert len(payload) - len(whole) <= 1
    assert payload.startswith(whole)
    assert len(g711.decode(encoding, whole)) == g711.samples_in(encoding, len(payload))


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
    # The widest step of either law is 1024 in 16 bits; values beyond the last code are clipped to it.
    inside = np.abs(ALL_SAMPLES.astype(np.int32)) <= 32124
    error = np.abs(decoded - ALL_SAMPLES)[inside]
    assert (error <= np.maximum(np.abs(ALL_SAMPLES.astype(np.int32))[inside] / 16, 16)).all()


def test_an_encoding_that_cannot_be_decoded_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="G722"):
        g711.decode("G722", b"")
    with pytest.raises(ValueError, match="3 bytes"):
        g711.decode("L16", b"abc")
