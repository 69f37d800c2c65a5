"""A stream token admits only the stream it was issued for, until it expires."""

from __future__ import annotations

import string
from hmac import compare_digest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatchai.telnyx.stream_tokens import MAX_TOKEN_CHARS, Subject, issue, stream_secret, verify

SECRET = b"sixteen bytes or more"
LEG = Subject("v3:T02llNDk1_-x", "ff55a038-session")
IDENTIFIERS = st.text(string.ascii_letters + string.digits + "._:~+/=@-", min_size=1, max_size=256)


def test_a_token_names_its_leg_and_its_call_until_it_expires() -> None:
    token = issue(SECRET, LEG, 1_000)
    assert verify(SECRET, token, 999.9) == LEG
    assert verify(SECRET, token, 1_000) is None


def test_a_token_of_another_secret_is_refused() -> None:
    assert verify(b"another secret, as long", issue(SECRET, LEG, 1_000), 0) is None


@given(IDENTIFIERS, IDENTIFIERS)
def test_a_token_fits_a_header_and_holds_any_identifiers(leg: str, call: str) -> None:
    token = issue(SECRET, Subject(leg, call), 2_000_000_000)
    assert verify(SECRET, token, 0) == Subject(leg, call)
    assert len(token) <= MAX_TOKEN_CHARS
    assert set(token) <= set(string.ascii_letters + string.digits + "-_.")


@given(st.data())
def test_a_token_with_any_character_changed_is_refused(data: st.DataObject) -> None:
    token = issue(SECRET, LEG, 1_000)
    place = data.draw(st.integers(0, len(token) - 1))
    other = data.draw(st.characters(max_codepoint=0x2FF).filter(lambda character: character != token[place]))
    assert verify(SECRET, token[:place] + other + token[place + 1 :], 0) is None


@given(st.text())
def test_any_text_is_refused_without_an_error(text: str) -> None:
    assert verify(SECRET, text, 0) is None


def test_parts_of_two_tokens_do_not_make_a_third() -> None:
    early, late = issue(SECRET, LEG, 1_000).split("."), issue(SECRET, LEG, 2_000).split(".")
    assert verify(SECRET, ".".join([*early[:2], late[2], early[3]]), 1_500) is None
    other = issue(SECRET, Subject(LEG.call_control_id, "another-call"), 1_000).split(".")
    assert verify(SECRET, ".".join([early[0], other[1], *early[2:]]), 500) is None


def test_the_mac_is_compared_in_constant_time_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[str, str]] = []

    def recording(one: str, other: str) -> bool:
        compared.append((one, other))
        return compare_digest(one, other)

    monkeypatch.setattr("dispatchai.telnyx.stream_tokens.hmac.compare_digest", recording)
    expired = issue(SECRET, LEG, 1_000)
    for token in (expired, expired[:-1], "", "a.b.c.d", "." * 500):
        assert verify(SECRET, token, 2_000) is None
    assert [given for _, given in compared] == [
        expired.rpartition(".")[2],
        expired[:-1].rpartition(".")[2],
        "",
        "d",
        "",
    ]
    assert all(len(wanted) == 43 for wanted, _ in compared)


@pytest.mark.parametrize(
    ("secret", "leg", "call", "expires_at_s"),
    [
        (b"short", "leg", "call", 1),
        (SECRET, "", "call", 1),
        (SECRET, "leg", "", 1),
        (SECRET, "two words", "call", 1),
        (SECRET, "leg", "two words", 1),
        (SECRET, "x" * 257, "call", 1),
        (SECRET, "leg", "call", -1),
    ],
)
def test_an_invalid_token_is_not_issued(secret: bytes, leg: str, call: str, expires_at_s: int) -> None:
    with pytest.raises(ValueError, match=r"secret|call control id|expiry"):
        issue(secret, Subject(leg, call), expires_at_s)


def test_worker_and_gateway_derive_the_same_secret_from_the_api_key() -> None:
    assert stream_secret("", "KEY123") == stream_secret("", "KEY123")
    assert stream_secret("", "KEY123") != stream_secret("", "KEY124")
    assert b"KEY123" not in (stream_secret("", "KEY123") or b"")
    assert stream_secret("a secret that was set", "KEY123") == b"a secret that was set"


def test_without_a_secret_or_a_key_there_are_no_tokens() -> None:
    assert stream_secret("", "") is None
    with pytest.raises(ValueError, match="STREAM_TOKEN_SECRET"):
        stream_secret("short", "KEY123")
