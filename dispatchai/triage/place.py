"""Places in the caller's words: addresses, crossings, roads and landmarks, as they were said.

Decides whether a place was stated and which words state it. It does not check whether the place exists, and changes no
word.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

from dispatchai.triage.patterns import Break, Token, word_set


class PlaceKind(IntEnum):
    """How exactly a place is stated, in rising order."""

    LANDMARK = 1
    ROAD = 2
    CROSSING = 3
    ADDRESS = 4


@dataclass(frozen=True, slots=True)
class PlaceSpan:
    """A stated place: the words from `first` to `last`, both included."""

    kind: PlaceKind
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class PlaceWords:
    """Word lists of the rules file. `roads` need a number in front where they are also ordinary words."""

    roads: frozenset[str]
    plain_roads: frozenset[str]
    numbered_roads: frozenset[str]
    landmarks: frozenset[str]
    never_in_names: frozenset[str]


_NUMBER_WORDS = word_set(
    "zero oh one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand"
)
_PREPOSITIONS = word_set("at on in near by behind outside inside opposite beside off along past to from of")
_MAX_NUMBER_WORDS = 6
_MAX_HOUSE_DIGITS = 6
_MAX_NAME_WORDS = 4
_MAX_LANDMARK_WORDS = 3
"""Words between the preposition and the landmark, itself included: "outside the corner store" has three."""


def find_places(tokens: Sequence[Token], words: PlaceWords) -> Iterator[PlaceSpan]:
    """Every stated place, in order of its first word. Spans may overlap; the more exact kind is the better one."""
    address_end = -1
    for first in range(len(tokens)):
        if first <= address_end:  # a part of an address, such as "twenty Oak Avenue" of "two twenty", is a wrong one
            continue
        for find in (_address, _crossing, _road, _landmark):
            if span := find(tokens, first, words):
                if span.kind is PlaceKind.ADDRESS:
                    address_end = span.last
                yield span
                break


def _is_number(word: str) -> bool:
    return word in _NUMBER_WORDS or (word[0].isdecimal() and len(word) <= _MAX_HOUSE_DIGITS)


def _run(tokens: Sequence[Token], start: int, longest: int, words: PlaceWords) -> int:
    """Number of words from `start` that may belong to a name: no sentence ends among them."""
    count = 0
    for here in range(start, min(start + longest, len(tokens))):
        if (here > start and tokens[here].before is Break.SENTENCE) or tokens[here].word in words.never_in_names:
            break
        count += 1
    return count


def _named_road(tokens: Sequence[Token], start: int, roads: frozenset[str], words: PlaceWords) -> int | None:
    """Position of the road word that ends a name of one or more words from `start`: Maple Street, Ocean View Way."""
    for here in range(start + 1, start + _run(tokens, start, _MAX_NAME_WORDS + 1, words)):
        if tokens[here].word in roads:
            return here
    return None


def _address(tokens: Sequence[Token], first: int, words: PlaceWords) -> PlaceSpan | None:
    if not _is_number(tokens[first].word):
        return None
    name = first
    while name < len(tokens) and name - first < _MAX_NUMBER_WORDS and _is_number(tokens[name].word):
        name += 1
    if name == len(tokens):
        return None
    last = _named_road(tokens, name, words.roads, words)
    if last is not None:
        return PlaceSpan(PlaceKind.ADDRESS, first, last)
    # The road word was lost or not said: "we are at 14 Maple". Accepted only if the number is introduced as a place.
    introduced = first >= 1 and (
        tokens[first - 1].word == "at"
        or (tokens[first - 1].word == "is" and first >= 2 and tokens[first - 2].word == "address")
    )
    if introduced and tokens[name].before is Break.NONE and _run(tokens, name, 1, words):
        return PlaceSpan(PlaceKind.ROAD, first, name)
    return None


def _crossing(tokens: Sequence[Token], first: int, words: PlaceWords) -> PlaceSpan | None:
    if tokens[first].word in {"corner", "intersection", "junction"}:
        if first + 1 == len(tokens) or tokens[first + 1].word != "of":
            return None
        start = first + 2
        one = _run(tokens, start, _MAX_NAME_WORDS, words)
        joint = start + one
        if one and joint < len(tokens) and tokens[joint].word == "and":
            other = min(_run(tokens, joint + 1, _MAX_NAME_WORDS, words), 2)
            return PlaceSpan(PlaceKind.CROSSING, start, joint + other) if other else None
        return None
    if tokens[first].word in words.never_in_names:
        return None
    one_road = _named_road(tokens, first, words.plain_roads, words)
    if one_road is None or one_road + 2 >= len(tokens) or tokens[one_road + 1].word not in {"and", "at"}:
        return None
    other_road = _named_road(tokens, one_road + 2, words.plain_roads, words)
    return None if other_road is None else PlaceSpan(PlaceKind.CROSSING, first, other_road)


def _road(tokens: Sequence[Token], first: int, words: PlaceWords) -> PlaceSpan | None:
    word = tokens[first].word
    if word in words.numbered_roads and first + 1 < len(tokens) and _is_number(tokens[first + 1].word):
        return PlaceSpan(PlaceKind.ROAD, first, first + 1)
    if word in _PREPOSITIONS and first + 1 < len(tokens):
        last = _named_road(tokens, first + 1, words.plain_roads, words)
        return None if last is None else PlaceSpan(PlaceKind.ROAD, first + 1, last)
    return None


def _landmark(tokens: Sequence[Token], first: int, words: PlaceWords) -> PlaceSpan | None:
    if tokens[first].word not in _PREPOSITIONS:
        return None
    if tokens[first].word == "to" and (first == 0 or tokens[first - 1].word not in {"next", "close"}):
        return None  # "took my son to school" says where someone went
    for here in range(first + 1, min(first + 1 + _MAX_LANDMARK_WORDS, len(tokens))):
        if tokens[here].before is not Break.NONE or tokens[here].word in _PREPOSITIONS:
            return None
        if tokens[here].word in words.landmarks:
            return PlaceSpan(PlaceKind.LANDMARK, first, here)
    return None
