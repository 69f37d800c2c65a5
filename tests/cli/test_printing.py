"""What comes from outside is printed without anything that a terminal would obey, or that nobody would see."""

from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatchai.cli.doctor.result import Check, as_json, fail, render
from dispatchai.cli.printing import printable, printable_json, printable_lines

C0 = [*map(chr, range(0x20)), "\x7f"]
C1 = [*map(chr, range(0x80, 0xA0))]
DIRECTION = [*"\u061c\u200e\u200f", *map(chr, range(0x202A, 0x202F)), *map(chr, range(0x2066, 0x206A))]
NO_WIDTH = [*"\u00ad\u180e\u200b\u200c\u200d\u2060\u2061\u2062\u2063\u2064\ufeff", *map(chr, range(0xE0000, 0xE0080))]
LINES = [*"\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"]
ALONE = ["\ud800", "\udfff"]
UNPRINTABLE = dict.fromkeys([*C0, *C1, *DIRECTION, *NO_WIDTH, *LINES, *ALONE])

ANY_TEXT = st.lists(st.one_of(st.sampled_from(list(UNPRINTABLE)), st.characters(codec=None))).map("".join)


@pytest.mark.parametrize("character", UNPRINTABLE, ids=lambda one: f"U+{ord(one):04X}")
def test_a_character_that_is_not_to_be_seen_is_replaced(character: str) -> None:
    assert printable(f"a{character}b") == "a\ufffdb"
    assert character not in printable_lines(f"a{character}b").replace("\n", "")
    assert character not in printable_json([f"a{character}b"]).replace("\n", "")


@given(ANY_TEXT)
def test_text_is_one_line_without_anything_to_obey(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert len(shown) == len(text)
    assert all(one == other for one, other in zip(text, shown, strict=True) if one.isprintable())


@given(ANY_TEXT)
def test_only_line_feeds_part_lines(text: str) -> None:
    assert len(printable_lines(text).splitlines()) <= text.count("\n") + 1
    assert printable_lines(text).replace("\n", "").isprintable()


@given(st.dictionaries(ANY_TEXT, st.lists(ANY_TEXT | st.integers() | st.none())))
def test_json_is_read_back_as_it_was(value: dict[str, list[str | int | None]]) -> None:
    shown = printable_json(value)
    assert shown.replace("\n", "").isprintable()
    assert json.loads(shown) == json.loads(json.dumps(value))


@pytest.mark.parametrize("text", ["Jérôme, 5 °C", "火事です", "🔥 in the café", "e\u0301", "سلام"])
def test_words_of_any_language_stay(text: str) -> None:
    assert printable(text) == text
    assert printable_json([text]) == f'[\n  "{text}"\n]'


@pytest.mark.parametrize("space", ["\u00a0", "\u2007", "\u3000"], ids=unicodedata.name)
def test_a_space_of_another_kind_is_a_space(space: str) -> None:
    assert printable(f"a{space}b") == "a b"


def test_the_doctor_prints_answers_without_anything_to_obey() -> None:
    results = [fail(Check.WEBHOOK, "answers \x1b[2J\x9b", "ask \u202eit")]
    for shown in (render(results, colours=False), as_json(results)):
        assert shown.replace("\n", "").isprintable()
