"""Words of a text, patterns over them, and whether a matched phrase is denied.

Decides which words are the same, what a pattern matches and how far a negation reaches. `rules` decides what a match
means. English only.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

from dispatchai.triage.errors import PatternError


def word_set(words: str) -> frozenset[str]:
    """The words of `words`, which spaces separate."""
    return frozenset(words.split())


def visible(text: str) -> str:
    """`text` with a space for each character that is none to be seen: controls, marks of direction and of no width.

    To `tokenize` these are breaks between words too.
    """
    return text if text.isprintable() else "".join(one if one.isprintable() else " " for one in text)


class Break(IntEnum):
    """The break between a word and the word before it."""

    NONE = 0
    CLAUSE = 1
    SENTENCE = 2


@dataclass(frozen=True, slots=True)
class Token:
    """One normalised word. `start`, `end`: character offsets in the text; "isn't" gives two words with one span."""

    word: str
    start: int
    end: int
    before: Break


_PIECE = re.compile(r"[^\W_]+(?:['’][^\W_]+)*|[.!?;…\n]|[,:—–]|--+")
_SENTENCE_MARKS = frozenset(".!?;…\n")

_CONTRACTIONS: Mapping[str, tuple[str, ...]] = {
    "ain't": ("is", "not"),
    "aint": ("is", "not"),
    "can't": ("can", "not"),
    "cant": ("can", "not"),
    "cannot": ("can", "not"),
    "won't": ("will", "not"),
    "wont": ("will", "not"),
    "dunno": ("do", "not", "know"),
    "gonna": ("going", "to"),
    "gotta": ("got", "to"),
    "wanna": ("want", "to"),
    "outta": ("out", "of"),
    "hes": ("he", "is"),
    "shes": ("she", "is"),
    "theres": ("there", "is"),
    "theyre": ("they", "are"),
    "thats": ("that", "is"),
    "im": ("i", "am"),
    "ive": ("i", "have"),
    "let's": ("let", "us"),
    **{
        f"{verb}nt": (verb, "not")  # recognisers drop the apostrophe
        for verb in (
            *("is", "are", "was", "were", "do", "does", "did", "has", "have", "had"),
            *("could", "would", "should", "must", "need"),
        )
    },
}
_ENDINGS: Mapping[str, str] = {
    "s": "is",  # also the possessive: no pattern requires a verb after it
    "re": "are",
    "m": "am",
    "ve": "have",
    "ll": "will",
    "d": "would",
}


def _words(raw: str) -> tuple[str, ...]:
    """The normalised words of one piece: "Isn't" is ("is", "not"), "husband's" is ("husband", "is")."""
    word = unicodedata.normalize("NFKC", raw).casefold().replace("’", "'")
    if known := _CONTRACTIONS.get(word):
        return known
    if word.endswith("n't") and len(word) > len("n't"):
        return word.removesuffix("n't"), "not"
    stem, apostrophe, ending = word.rpartition("'")
    if apostrophe and ending in _ENDINGS:
        return stem, _ENDINGS[ending]
    return (word.replace("'", ""),)


def tokenize(text: str) -> tuple[Token, ...]:
    """The words of `text` in order. Any string is accepted."""
    tokens: list[Token] = []
    pending = Break.NONE
    for piece in _PIECE.finditer(text):
        raw = piece.group()
        if not raw[0].isalnum():
            pending = max(pending, Break.SENTENCE if raw in _SENTENCE_MARKS else Break.CLAUSE)
            continue
        for word in _words(raw):
            tokens.append(Token(word, piece.start(), piece.end(), pending))
            pending = Break.NONE
    return tuple(tokens)


# --- Patterns --------------------------------------------------------------------------------------------------------

MAX_GAP = 6
"""Most words that a pattern may skip at once. Words of speech that are farther apart seldom belong together."""

NEGATORS = frozenset({"no", "not", "never", "nobody", "none", "nothing", "neither", "nor", "without", "noone"})
"""Words that deny what follows. A pattern that names one itself ("not breathing") is a finding, never denied."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """A sequence of words. `elements[k]` may stand up to `gaps[k]` words after the element before it."""

    elements: tuple[frozenset[str], ...]
    gaps: tuple[int, ...]
    names_negation: bool

    def match(self, tokens: Sequence[Token], first: int) -> tuple[int, ...] | None:
        """Positions of the elements when the first stands at `first`, or None. Nearest words win.

        Words are skipped within a sentence only. Neighbouring elements may stand on both sides of a full stop:
        recognisers put one into every pause ("He's not. Breathing.").
        """
        return self._extend(tokens, (first,)) if tokens[first].word in self.elements[0] else None

    def _extend(self, tokens: Sequence[Token], positions: tuple[int, ...]) -> tuple[int, ...] | None:
        if len(positions) == len(self.elements):
            return positions
        wanted = self.elements[len(positions)]
        start = positions[-1] + 1
        for here in range(start, min(start + self.gaps[len(positions)] + 1, len(tokens))):
            if here > start and Break.SENTENCE in (tokens[start].before, tokens[here].before):
                break
            if tokens[here].word in wanted and (found := self._extend(tokens, (*positions, here))):
                return found
        return None


def compile_pattern(text: str, classes: Mapping[str, frozenset[str]]) -> Pattern:
    """The pattern written as `text`.

    Elements stand one space apart. An element is one or more alternatives joined by `|`: a word, `word+` for its
    regular inflections, or `@name` for a class. `~N` before an element lets up to N words stand before it.
    Raises PatternError.
    """
    elements: list[frozenset[str]] = []
    gaps: list[int] = []
    gap: int | None = None
    for part in text.split():
        if part.startswith("~"):
            if not elements or gap is not None or not part[1:].isdecimal() or not 1 <= int(part[1:]) <= MAX_GAP:
                raise PatternError(f"{part!r} in {text!r}: a gap is ~1 to ~{MAX_GAP}, between two elements")
            gap = int(part[1:])
            continue
        elements.append(frozenset(word for name in part.split("|") for word in _alternative(name, text, classes)))
        gaps.append(gap or 0)
        gap = None
    if not elements or gap is not None:
        raise PatternError(f"{text!r} does not end in an element")
    return Pattern(tuple(elements), tuple(gaps), any(NEGATORS & element for element in elements))


def _alternative(name: str, pattern: str, classes: Mapping[str, frozenset[str]]) -> Iterable[str]:
    if name.startswith("@"):
        if name[1:] not in classes:
            raise PatternError(f"{name} in {pattern!r} is no class of this file")
        return classes[name[1:]]
    word = name.removesuffix("+")
    if _words(word) != (word,) or not word.isalnum():
        raise PatternError(f"{name!r} in {pattern!r} is not one normalised word: it could never match")
    return inflections(word) if name.endswith("+") else (word,)


def inflections(word: str) -> frozenset[str]:
    """`word` with its regular plural, third person, past and -ing forms: stab, stabs, stabbed, stabbing.

    Both spellings are given where the consonant may double; forms that are no words do no harm.
    """
    forms = {word, f"{word}s", f"{word}ing", f"{word}ed"}
    if word.endswith(("s", "x", "z", "ch", "sh")):
        forms.add(f"{word}es")
    if word.endswith("e"):
        forms |= {f"{word[:-1]}ing", f"{word}d"}
    elif word.endswith("y"):
        forms |= {f"{word[:-1]}ies", f"{word[:-1]}ied"}
    elif word[-1] not in "aeiouwx":
        forms |= {f"{word}{word[-1]}ing", f"{word}{word[-1]}ed"}
    return frozenset(forms)


class Matcher:
    """Finds many patterns in one pass over a text. Each pattern has a label, such as the number of its rule."""

    __slots__ = ("_by_first",)

    def __init__(self, patterns: Iterable[tuple[int, Pattern]]) -> None:
        by_first: defaultdict[str, list[tuple[int, Pattern, frozenset[str] | None, bool]]] = defaultdict(list)
        for label, pattern in patterns:
            second = pattern.elements[1] if len(pattern.elements) > 1 else None
            for word in pattern.elements[0]:
                by_first[word].append((label, pattern, second, second is not None and not pattern.gaps[1]))
        self._by_first = {word: tuple(found) for word, found in by_first.items()}

    def find(self, tokens: Sequence[Token]) -> Iterator[tuple[int, Pattern, tuple[int, ...]]]:
        """Label, pattern and positions of every match, in order of its first word."""
        words = [token.word for token in tokens]
        for first, word in enumerate(words):
            if not (entries := self._by_first.get(word)):
                continue
            near = words[first + 1 : first + 2 + MAX_GAP]
            following, nearby = near[0] if near else "", frozenset(near)
            for label, pattern, second, adjacent in entries:
                # Most patterns fail at their second element, and this costs a tenth of a call.
                if second is not None and (following not in second if adjacent else nearby.isdisjoint(second)):
                    continue
                if positions := pattern.match(tokens, first):
                    yield label, pattern, positions


# --- Negation --------------------------------------------------------------------------------------------------------
# After NegEx (Chapman et al., J Biomed Inform 2001): a negator denies the words after it within a short window, unless
# it is a pseudo-negation or a terminator stands between. Unclear cases are not denied: a phrase that is wrongly denied
# may cost a life, one that is wrongly kept costs a look.

_WINDOW = 5
_NO_WINDOW = 3
"""`no` and `without` deny a noun phrase: "no fire", "no sign of smoke". Words farther away belong to something else."""

_TERMINATORS = word_set("and but because so then though although except only until unless if please help now")
_SUBJECTS = word_set("i he she they we you it there who someone somebody everybody everyone people")
_THINKING = frozenset({"think", "believe", "guess", "suppose"})
"""Verbs whose negation belongs to their clause: "I don't think he has a gun" says that he has none."""

_NOT_A_NOUN_PHRASE = _SUBJECTS | word_set(
    "the my a an please oh god no yes this that his her their our your help stop wait hurry matter doubt idea"
)
"""After `no` these make it an exclamation or an idiom: "no the house is on fire"."""

_UNDENYING = word_set(
    "only just sure certain know stop stopping stopped put drop dropping let tell remember wait get getting contain "
    "control extinguish leave escape hurry mind seen felt long"
)
"""After `not` and `never` these do not deny what follows: "can't stop the bleeding", "won't drop the gun"."""

_STATING = word_set("be been being is are am was were do does did has have had think believe")
"""Words before or after `not` that make a statement of fact, and not of ability or will ("won't", "can't")."""

_ABILITY = word_set("can could will would should must")
"""Before `not` these say what cannot or will not be done: the thing itself is there ("can't reach the gun")."""

_HAVING = word_set(
    "have having had got any anything see seeing saw hear smell carry carrying hold holding own look appear seem "
    "think believe"
)
"""Verbs whose object is denied with them, even a few words later: "didn't have a knife"."""


def is_denied(tokens: Sequence[Token], positions: Sequence[int]) -> bool:
    """Whether the caller denies the phrase whose elements are at `positions`: "no fire", "nobody is hurt"."""
    floors = (-1, *positions)
    return any(_is_denied_at(tokens, position, floor) for position, floor in zip(positions, floors, strict=False))


def _is_denied_at(tokens: Sequence[Token], position: int, floor: int) -> bool:
    """Search back from the word at `position` for a negator, up to `floor`, a break, a terminator or a new subject."""
    for here in range(position - 1, max(floor, position - 1 - _WINDOW), -1):
        if tokens[here + 1].before is not Break.NONE:
            return False
        word = tokens[here].word
        if word in NEGATORS:
            return _denies(tokens, here, position)
        if word in _SUBJECTS:
            return _is_denied_belief(tokens, here)
        if word in _TERMINATORS:
            return False
    return False


def _denies(tokens: Sequence[Token], negator: int, position: int) -> bool:
    following = tokens[negator + 1].word
    distance = position - negator
    match tokens[negator].word:
        case "no" if following == "one":
            return True
        case "no" | "without":
            return distance <= _NO_WINDOW and (distance == 1 or following not in _NOT_A_NOUN_PHRASE)
        case "not" | "never":
            if following in _UNDENYING and distance > 1:
                return False
            if any(token.word.startswith("any") for token in tokens[negator + 1 : position]):
                return True
            preceding = tokens[negator - 1].word if negator else "is"
            if preceding in _ABILITY:
                return False
            return distance == 1 or (distance == 2 and preceding in _STATING) or following in _HAVING
        case _:
            return True


def _is_denied_belief(tokens: Sequence[Token], subject: int) -> bool:
    verb = subject - 1
    if verb >= 0 and tokens[verb].word == "that":
        verb -= 1
    if verb < 1 or tokens[verb].word not in _THINKING or tokens[verb - 1].word != "not":
        return False
    return verb < 2 or tokens[verb - 2].word not in _ABILITY  # "I can't believe he has a gun" says that he has one
