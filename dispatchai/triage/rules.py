"""The rules of triage in compiled, immutable form, and the analysis of a text by them.

Decides how entries of the rules file refer to each other. `rules_file` decides which fields an entry has, `patterns`
what a pattern matches, `scoring` how the findings of a call become a score.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, NoReturn

from dispatchai.records.values import Category, RiskLevel
from dispatchai.triage.errors import PatternError, RulesError
from dispatchai.triage.patterns import (
    Break,
    Matcher,
    Pattern,
    Token,
    compile_pattern,
    is_denied,
    tokenize,
)
from dispatchai.triage.place import PlaceKind, PlaceWords, find_places
from dispatchai.triage.rules_file import Mood, RulesFile
from dispatchai.yaml_model import YamlFile, YamlFileError, read_yaml

DEFAULT_PATH: Final = Path(__file__).resolve().parent / "rules.yaml"

UNITS: Final = 10_000
"""Units of the score in 1.0. Points are summed as whole units, so that the parts of a score add up exactly."""

_SEAM_WORDS: Final = 8
"""Words on each side of the seam between two utterances that are analysed together. Above the reach of a negation."""

_SEAM_CHARS: Final = 1_024
"""Characters on each side among which these words are looked for."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A finding. `units` count if it leads the call, `adds` if a stronger one does; see `scoring.conclude`."""

    name: str
    tags: tuple[str, ...]
    kind: str
    services: tuple[tuple[Category, float], ...]
    units: int
    adds: int
    says: str
    reason: str
    quiet: bool
    """Whether the summary leaves it out when another finding leads."""
    when_all: tuple[frozenset[int], ...]
    """A combined rule holds when at least one rule of each set holds. Numbers of earlier rules."""


@dataclass(frozen=True, slots=True)
class Cue:
    """Words that show the caller's state."""

    mood: Mood
    weight: float


@dataclass(frozen=True, slots=True)
class Question:
    """A question that a dispatcher needs answered, for findings of `kinds`, or always if there are none."""

    name: str
    kinds: frozenset[str]
    answered_by_facts: frozenset[int]
    answered_by_rules: frozenset[int]
    answered_by_place: bool


@dataclass(frozen=True, slots=True)
class Hit:
    """A rule found in a text. `spans` are character offsets: one, or two for a hit across a seam."""

    rule: int
    spans: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Place:
    """A stated place, in the caller's words."""

    kind: PlaceKind
    text: str


@dataclass(frozen=True, slots=True)
class Analysis:
    """The analysis of a text: hits in the order of their places, only the first hit of each rule."""

    words: int
    hits: tuple[Hit, ...]
    facts: frozenset[int]
    cues: tuple[int, ...]
    places: tuple[Place, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Rules:
    """Compiled rules. Immutable; equal only to itself."""

    version: str
    levels: tuple[tuple[RiskLevel, int], ...]
    """Level and the units from which it holds, highest first. Below the last there is LOW."""
    unrecognised: Rule
    """Stands for the words of a caller in which no rule found anything."""
    voice_units: int
    voice_reason: str
    rules: tuple[Rule, ...]
    facts: tuple[str, ...]
    """The names of the facts, by their numbers."""
    cues: tuple[Cue, ...]
    questions: tuple[Question, ...]
    places: PlaceWords
    numbers: Mapping[str, int]
    """The numbers of the rules, by their names."""
    _rule_matcher: Matcher
    _unless_matcher: Matcher
    _fact_matcher: Matcher
    _fact_unless_matcher: Matcher
    _cue_matcher: Matcher

    @classmethod
    def load(cls, path: Path | None = None) -> Rules:
        """The rules in the YAML file `path`, by default those that ship with the program. Raises RulesError."""
        path = path or DEFAULT_PATH
        try:
            raw = path.read_bytes()
            return _Compiler(read_yaml(raw, RulesFile, path)).rules(hashlib.sha256(raw).hexdigest())
        except OSError as error:
            raise RulesError(f"{path}: cannot be read: {error}") from error
        except YamlFileError as error:
            raise RulesError(str(error)) from error

    def analyse(self, text: str) -> Analysis:
        """The analysis of `text`. A pure function of it."""
        tokens = tokenize(text)
        hits: dict[int, Hit] = {}
        for label, positions in self._hits(tokens):
            span = (tokens[positions[0]].start, max(tokens[position].end for position in positions))
            hits.setdefault(label, Hit(label, (span,)))
        return Analysis(
            words=len(tokens),
            hits=tuple(hits.values()),
            facts=frozenset(label for label, _ in self._facts(tokens)),
            cues=self._cue_labels(tokens),
            places=tuple(
                Place(span.kind, text[tokens[span.first].start : tokens[span.last].end])
                for span in find_places(tokens, self.places)
            ),
        )

    def analyse_seam(self, before: str, after: str) -> Analysis:
        """The analysis of what the end of `before` and the start of `after` say together ("He's not" / "breathing").

        The first span of a hit counts from the beginning of `before`, the second from that of `after`.
        """
        left = _last_words(before)
        right = tokenize(after[:_SEAM_CHARS])[:_SEAM_WORDS]
        if not left or not right:
            return Analysis(0, (), frozenset(), (), ())
        # A pause acts as a full stop: no gap and no negation reaches across it, only neighbouring words match.
        tokens = (*left, Token(right[0].word, right[0].start, right[0].end, Break.SENTENCE), *right[1:])
        seam = len(left)

        def across(first: int, last: int) -> bool:
            return first < seam <= last

        hits: dict[int, Hit] = {}
        for label, positions in self._hits(tokens):
            if across(positions[0], positions[-1]):
                spans = ((tokens[positions[0]].start, left[-1].end), (right[0].start, tokens[positions[-1]].end))
                hits.setdefault(label, Hit(label, spans))
        return Analysis(
            words=0,
            hits=tuple(hits.values()),
            facts=frozenset(label for label, found in self._facts(tokens) if across(found[0], found[-1])),
            cues=(),
            places=tuple(
                Place(
                    span.kind,
                    " ".join(
                        (before[tokens[span.first].start : left[-1].end], after[right[0].start : tokens[span.last].end])
                    ),
                )
                for span in find_places((*left, *right), self.places)
                if across(span.first, span.last)
            ),
        )

    def _hits(self, tokens: Sequence[Token]) -> list[tuple[int, tuple[int, ...]]]:
        return _kept(tokens, self._rule_matcher, self._unless_matcher)

    def _facts(self, tokens: Sequence[Token]) -> list[tuple[int, tuple[int, ...]]]:
        return _kept(tokens, self._fact_matcher, self._fact_unless_matcher, deniable=False)

    def _cue_labels(self, tokens: Sequence[Token]) -> tuple[int, ...]:
        return tuple(
            label for label, _, positions in self._cue_matcher.find(tokens) if not is_denied(tokens, positions)
        )


def _last_words(text: str) -> list[Token]:
    """The last words of `text`, up to _SEAM_WORDS."""
    cut = max(0, len(text) - _SEAM_CHARS)
    words = tokenize(text[cut:])[-_SEAM_WORDS:]
    return [replace(word, start=word.start + cut, end=word.end + cut) for word in words] if cut else list(words)


def _kept(
    tokens: Sequence[Token], wanted: Matcher, unless: Matcher, *, deniable: bool = True
) -> list[tuple[int, tuple[int, ...]]]:
    """Labels and positions of the matches that no negation denies and that no idiom of the same label contains."""
    idioms: dict[int, list[tuple[int, int]]] = {}
    for label, _, positions in unless.find(tokens):
        idioms.setdefault(label, []).append((positions[0], positions[-1]))
    return [
        (label, positions)
        for label, pattern, positions in wanted.find(tokens)
        if not any(first <= positions[0] and positions[-1] <= last for first, last in idioms.get(label, ()))
        and (not deniable or pattern.names_negation or not is_denied(tokens, positions))
    ]


# --- Compiling the file ----------------------------------------------------------------------------------------------

_LEVELS: Final = (RiskLevel.CRITICAL, RiskLevel.HIGH, RiskLevel.MEDIUM)

_PLACE_ANSWER: Final = "place"
"""The word in `answered_by` that stands for a stated place."""

Labelled = list[tuple[int, Pattern]]
"""Patterns, each with the number of its entry."""


class _Compiler:
    """Compiles one file. Raises YamlFileError for a fault, with the line of the entry and its names."""

    def __init__(self, file: YamlFile[RulesFile]) -> None:
        self._file = file
        self._content = file.content
        self._classes: dict[str, frozenset[str]] = {}

    def rules(self, digest: str) -> Rules:
        """The compiled rules. `digest` is that of the file."""
        content = self._content
        self._compile_classes()
        rules, rule_patterns, rule_idioms = self._rules()
        facts, fact_patterns, fact_idioms = self._facts()
        cues, cue_patterns = self._cues()
        levels, unrecognised, voice = content.levels, content.unrecognised, content.voice
        return Rules(
            version=f"{content.version}+{digest[:8]}",
            levels=tuple((level, _units(getattr(levels, level.value))) for level in _LEVELS),
            unrecognised=Rule(
                name="unrecognised",
                tags=(),
                kind="",
                services=(),
                units=_units(unrecognised.points),
                adds=0,
                says=unrecognised.says,
                reason=unrecognised.reason,
                quiet=True,
                when_all=(),
            ),
            voice_units=_units(voice.points),
            voice_reason=voice.reason,
            rules=rules,
            facts=tuple(facts),
            cues=cues,
            questions=self._questions(rules, facts),
            places=self._places(),
            numbers={rule.name: number for number, rule in enumerate(rules)},
            _rule_matcher=Matcher(rule_patterns),
            _unless_matcher=Matcher(rule_idioms),
            _fact_matcher=Matcher(fact_patterns),
            _fact_unless_matcher=Matcher(fact_idioms),
            _cue_matcher=Matcher(cue_patterns),
        )

    def _compile_classes(self) -> None:
        for name, words in self._content.classes.items():
            found: set[str] = set()
            for index, word in enumerate(words):
                pattern = self._pattern(word, "classes", name, index)
                if len(pattern.elements) != 1:
                    self._fail(f"{word!r} is not one word", "classes", name, index)
                found |= pattern.elements[0]
            self._classes[name] = frozenset(found)

    def _rules(self) -> tuple[tuple[Rule, ...], Labelled, Labelled]:
        """The rules, their patterns, and the idioms that silence these."""
        rules: list[Rule] = []
        patterns: Labelled = []
        idioms: Labelled = []
        numbers: dict[str, int] = {}
        for number, (name, entry) in enumerate(self._content.rules.items()):
            patterns += self._patterns(number, entry.any_of or (), "rules", name, "any_of")
            idioms += self._idioms(number, entry.unless, "rules", name)
            rules.append(
                Rule(
                    name=name,
                    tags=entry.tags,
                    kind=entry.kind,
                    services=tuple(entry.services.items()),
                    units=_units(entry.points),
                    adds=_units(entry.adds),
                    says=entry.says,
                    reason=entry.reason,
                    quiet=entry.quiet,
                    when_all=self._when_all(name, numbers),
                )
            )
            numbers[name] = number
        return tuple(rules), patterns, idioms

    def _when_all(self, name: str, numbers: Mapping[str, int]) -> tuple[frozenset[int], ...]:
        """The choices of the rule `name`, as `numbers` of the rules above it."""
        choices: list[frozenset[int]] = []
        for index, names in enumerate(self._content.rules[name].when_all or ()):
            for one in names.split("|"):
                if one not in numbers:
                    self._fail(f"{one!r} is no rule above this one", "rules", name, "when_all", index)
            choices.append(frozenset(numbers[one] for one in names.split("|")))
        return tuple(choices)

    def _facts(self) -> tuple[dict[str, int], Labelled, Labelled]:
        """The numbers of the facts, their patterns, and the idioms that silence these."""
        patterns: Labelled = []
        idioms: Labelled = []
        for number, (name, entry) in enumerate(self._content.facts.items()):
            patterns += self._patterns(number, entry.any_of, "facts", name, "any_of")
            idioms += self._idioms(number, entry.unless, "facts", name)
        return {name: number for number, name in enumerate(self._content.facts)}, patterns, idioms

    def _cues(self) -> tuple[tuple[Cue, ...], Labelled]:
        patterns: Labelled = []
        for number, (name, entry) in enumerate(self._content.cues.items()):
            patterns += self._patterns(number, entry.any_of, "cues", name, "any_of")
        return tuple(Cue(entry.mood, entry.weight) for entry in self._content.cues.values()), patterns

    def _questions(self, rules: Sequence[Rule], facts: Mapping[str, int]) -> tuple[Question, ...]:
        names, kinds = {rule.name for rule in rules}, {rule.kind for rule in rules}
        known = names | kinds | facts.keys() | {_PLACE_ANSWER}
        questions = []
        for name, entry in self._content.questions.items():
            for index, kind in enumerate(entry.kinds):
                if kind not in kinds:
                    self._fail(f"no rule is of kind {kind!r}", "questions", name, "kinds", index)
            for index, answer in enumerate(entry.answered_by):
                if answer not in known:
                    fault = f"{answer!r} is no fact, rule or kind of rule"
                    self._fail(fault, "questions", name, "answered_by", index)
            answers = frozenset(entry.answered_by)
            questions.append(
                Question(
                    name=name,
                    kinds=frozenset(entry.kinds),
                    answered_by_facts=frozenset(facts[answer] for answer in answers if answer in facts),
                    answered_by_rules=frozenset(
                        number for number, rule in enumerate(rules) if answers & {rule.name, rule.kind}
                    ),
                    answered_by_place=_PLACE_ANSWER in answers,
                )
            )
        return tuple(questions)

    def _places(self) -> PlaceWords:
        def words(lines: Sequence[str]) -> frozenset[str]:
            return frozenset(word for line in lines for word in line.split())

        places = self._content.places
        return PlaceWords(
            roads=words((*places.plain_roads, *places.short_roads)),
            plain_roads=words(places.plain_roads),
            numbered_roads=words(places.numbered_roads),
            landmarks=words(places.landmarks),
            never_in_names=words(places.never_in_names),
        )

    def _patterns(self, label: int, texts: Sequence[str], *loc: str) -> Labelled:
        return [(label, self._pattern(text, *loc, index)) for index, text in enumerate(texts)]

    def _idioms(self, label: int, texts: Sequence[str], *loc: str) -> Labelled:
        idioms = self._patterns(label, texts, *loc, "unless")
        for index, (_, pattern) in enumerate(idioms):
            if len(pattern.elements) == 1:
                fault = f"{texts[index]!r} must be two or more words: one word must never silence a finding"
                self._fail(fault, *loc, "unless", index)
        return idioms

    def _pattern(self, text: str, *loc: str | int) -> Pattern:
        try:
            return compile_pattern(text, self._classes)
        except PatternError as error:
            self._fail(str(error), *loc)

    def _fail(self, fault: str, *loc: str | int) -> NoReturn:
        raise self._file.error(loc, fault)


def _units(points: float) -> int:
    return round(points * UNITS)
