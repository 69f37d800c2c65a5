"""The rules file: what it may say, and its compiled, immutable form.

Decides how rules are written and checked, and finds what one text says by them. How the findings of a call become
a score is left to `rules`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, NoReturn

import yaml

from dispatchai.records.values import Category, RiskLevel, Service
from dispatchai.triage.patterns import (
    Break,
    Matcher,
    Pattern,
    PatternError,
    Token,
    compile_pattern,
    is_denied,
    tokenize,
    word_set,
)
from dispatchai.triage.place import PlaceKind, PlaceWords, find_places

DEFAULT_PATH = Path(__file__).resolve().parent / "rules.yaml"

UNITS = 10_000
"""Units of the score in 1.0. Points are summed as whole units, so that the parts of a score add up exactly."""

MAX_VOICE_UNITS = 1_000
"""Most that the voice may add: 0.10. Loudness onset is a weak signal and must not decide between levels of danger."""

_SEAM_WORDS = 8
"""Words on each side of the seam of two utterances that are read together. Above the reach of a negation."""


class RulesError(ValueError):
    """The rules file cannot be used. The message names the file, the rule and what is wrong."""


class Mood(StrEnum):
    """What a cue in the caller's words speaks of."""

    FEAR = "fear"
    ANGER = "anger"
    RELIEF = "relief"


@dataclass(frozen=True, slots=True)
class Rule:
    """A finding. `units` count when it leads the call, `adds` when a stronger one does; see `rules.conclude`."""

    name: str
    tags: tuple[str, ...]
    kind: str
    services: tuple[tuple[Category, float], ...]
    units: int
    adds: int
    says: str
    reason: str
    quiet: bool
    """Not named in the summary when another finding leads."""
    when_all: tuple[frozenset[int], ...]
    """For a combined rule: it holds when of each set at least one rule holds. Numbers of earlier rules."""


@dataclass(frozen=True, slots=True)
class Cue:
    """Words that show the caller's state."""

    mood: Mood
    weight: float


@dataclass(frozen=True, slots=True)
class Question:
    """What a dispatcher needs to know. Asked for findings of `kinds`, or always if empty."""

    name: str
    kinds: frozenset[str]
    answered_by_facts: frozenset[int]
    answered_by_rules: frozenset[int]
    answered_by_place: bool


@dataclass(frozen=True, slots=True)
class Hit:
    """A rule found in a text. `spans` are character offsets: one, or two where it lies across a seam."""

    rule: int
    spans: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Place:
    """A stated place, in the caller's words."""

    kind: PlaceKind
    text: str


@dataclass(frozen=True, slots=True)
class Analysis:
    """What one text says by the rules: hits in order of their place in the text, each rule's first hit only."""

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
    """What stands for a caller who speaks of nothing that the rules know."""
    voice_units: int
    voice_reason: str
    rules: tuple[Rule, ...]
    cues: tuple[Cue, ...]
    questions: tuple[Question, ...]
    places: PlaceWords
    _rule_matcher: Matcher
    _unless_matcher: Matcher
    _fact_matcher: Matcher
    _fact_unless_matcher: Matcher
    _cue_matcher: Matcher

    @classmethod
    def load(cls, path: Path | None = None) -> Rules:
        """The rules in the YAML file `path`, by default those that ship with the program. Raises RulesError."""
        return _Reader(path or DEFAULT_PATH).rules()

    def analyse(self, text: str) -> Analysis:
        """What `text` says. A pure function of it."""
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
        """What only the end of `before` and the beginning of `after` say together ("He's not" / "breathing").

        Spans of hits count from the beginning of `before` in their first part, of `after` in their second.
        """
        left = tokenize(before)[-_SEAM_WORDS:]
        right = tokenize(after)[:_SEAM_WORDS]
        if not left or not right:
            return Analysis(0, (), frozenset(), (), ())
        # A pause has the force of a full stop: no gap and no negation reaches across it, only neighbouring words do.
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


def _kept(
    tokens: Sequence[Token], wanted: Matcher, unless: Matcher, *, deniable: bool = True
) -> list[tuple[int, tuple[int, ...]]]:
    """Labels and positions of the matches that no negation denies and no idiom of the same label contains."""
    idioms: dict[int, list[tuple[int, int]]] = {}
    for label, _, positions in unless.find(tokens):
        idioms.setdefault(label, []).append((positions[0], positions[-1]))
    return [
        (label, positions)
        for label, pattern, positions in wanted.find(tokens)
        if not any(first <= positions[0] and positions[-1] <= last for first, last in idioms.get(label, ()))
        and (not deniable or pattern.names_negation or not is_denied(tokens, positions))
    ]


# --- Reading the file ------------------------------------------------------------------------------------------------

_LEVELS = (RiskLevel.CRITICAL, RiskLevel.HIGH, RiskLevel.MEDIUM)
_RULE_FIELDS = word_set("tags kind services points adds says reason quiet any_of when_all unless")
_PLACE_ANSWER = "place"


class _Loader(yaml.SafeLoader):
    """YAML in which `no`, `on` and `off` are words, as they are in speech, and no name is given twice in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        names = [key.value for key, _ in node.value]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0]!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


_BOOLEAN = "tag:yaml.org,2002:bool"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, expression) for tag, expression in resolvers if tag != _BOOLEAN]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class _Reader:
    """Checks one file and compiles it. Every complaint names the file and the place in it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._bytes = path.read_bytes()
            document = yaml.load(self._bytes, _Loader)  # noqa: S506 - a SafeLoader
        except (OSError, UnicodeError, yaml.YAMLError) as error:
            raise RulesError(f"{path}: cannot be read: {error}") from error
        self._document = self._mapping(document, "the file")
        self._classes: dict[str, frozenset[str]] = {}

    def rules(self) -> Rules:
        known = {
            "version",
            "levels",
            "unrecognised",
            "voice",
            "classes",
            "rules",
            "facts",
            "cues",
            "questions",
            "places",
        }
        self._only(self._document, known, "the file")
        self._read_classes()
        rules, rule_patterns, rule_idioms = self._read_rules()
        facts, fact_patterns, fact_idioms = self._read_facts()
        cues, cue_patterns = self._read_cues()
        voice = self._section("voice")
        self._only(voice, {"points", "reason"}, "voice")
        voice_units = self._units(voice, "points", "voice")
        if voice_units > MAX_VOICE_UNITS:
            self._fail("voice", f"points may be at most {MAX_VOICE_UNITS / UNITS}: a voice alone decides nothing")
        unrecognised = self._section("unrecognised")
        digest = hashlib.sha256(self._bytes).hexdigest()
        self._only(unrecognised, {"points", "says", "reason"}, "unrecognised")
        return Rules(
            version=f"{self._text(self._document, 'version', 'the file')}+{digest[:8]}",
            levels=self._read_levels(),
            unrecognised=Rule(
                name="unrecognised",
                tags=(),
                kind="",
                services=(),
                units=self._units(unrecognised, "points", "unrecognised"),
                adds=0,
                says=self._text(unrecognised, "says", "unrecognised"),
                reason=self._text(unrecognised, "reason", "unrecognised"),
                quiet=True,
                when_all=(),
            ),
            voice_units=voice_units,
            voice_reason=self._text(voice, "reason", "voice"),
            rules=rules,
            cues=cues,
            questions=self._read_questions(rules, facts),
            places=self._read_places(),
            _rule_matcher=Matcher(rule_patterns),
            _unless_matcher=Matcher(rule_idioms),
            _fact_matcher=Matcher(fact_patterns),
            _fact_unless_matcher=Matcher(fact_idioms),
            _cue_matcher=Matcher(cue_patterns),
        )

    def _read_levels(self) -> tuple[tuple[RiskLevel, int], ...]:
        section = self._section("levels")
        self._only(section, {level.value for level in _LEVELS}, "levels")
        levels = tuple((level, self._units(section, level.value, "levels")) for level in _LEVELS)
        if not UNITS >= levels[0][1] > levels[1][1] > levels[2][1] > 0:
            self._fail("levels", "CRITICAL, HIGH and MEDIUM must fall, between 1 and 0")
        return levels

    def _read_classes(self) -> None:
        for name, words in self._section("classes").items():
            where = f"class {name}"
            found: set[str] = set()
            for word in self._texts(words, where):
                pattern = self._pattern(word, where)
                if len(pattern.elements) != 1:
                    self._fail(where, f"{word!r} is not one word")
                found |= pattern.elements[0]
            self._classes[name] = frozenset(found)

    def _read_rules(self) -> tuple[tuple[Rule, ...], list[tuple[int, Pattern]], list[tuple[int, Pattern]]]:
        rules: list[Rule] = []
        patterns: list[tuple[int, Pattern]] = []
        idioms: list[tuple[int, Pattern]] = []
        numbers: dict[str, int] = {}
        for name, value in self._section("rules").items():
            where = f"rule {name}"
            body = self._mapping(value, where)
            self._only(body, _RULE_FIELDS, where)
            number = len(rules)
            if ("any_of" in body) == ("when_all" in body):
                self._fail(where, "needs either any_of (patterns) or when_all (names of earlier rules)")
            if "unless" in body and "any_of" not in body:
                self._fail(where, "unless belongs to any_of")
            patterns += self._patterns(number, body.get("any_of", ()), where)
            idioms += self._idioms(number, body.get("unless", ()), where)
            units, adds = self._units(body, "points", where), self._units(body, "adds", where)
            if adds > units:
                self._fail(where, "adds more than its points: leading the call would lower the score")
            rules.append(
                Rule(
                    name=name,
                    tags=self._texts(body.get("tags", ()), where),
                    kind=self._text(body, "kind", where),
                    services=self._read_services(body, where),
                    units=units,
                    adds=adds,
                    says=self._text(body, "says", where),
                    reason=self._text(body, "reason", where),
                    quiet=self._flag(body, "quiet", where),
                    when_all=tuple(
                        frozenset(self._number(one, numbers, where) for one in names.split("|"))
                        for names in self._texts(body.get("when_all", ()), where)
                    ),
                )
            )
            numbers[name] = number
        return tuple(rules), patterns, idioms

    def _read_services(self, body: Mapping[str, Any], where: str) -> tuple[tuple[Category, float], ...]:
        services = []
        for name, weight in self._mapping(body.get("services", {}), f"{where}, services").items():
            if name not in {*Service, Category.OTHER}:
                self._fail(where, f"{name!r} is no service; there are {', '.join(Service)} and OTHER")
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight <= 1:
                self._fail(where, f"the weight of {name} must be above 0 and at most 1")
            services.append((Category(name), float(weight)))
        return tuple(services)

    def _read_facts(self) -> tuple[dict[str, int], list[tuple[int, Pattern]], list[tuple[int, Pattern]]]:
        numbers: dict[str, int] = {}
        patterns: list[tuple[int, Pattern]] = []
        idioms: list[tuple[int, Pattern]] = []
        for number, (name, value) in enumerate(self._section("facts").items()):
            where = f"fact {name}"
            body = self._mapping(value, where)
            self._only(body, {"any_of", "unless"}, where)
            patterns += self._patterns(number, body.get("any_of", ()), where)
            idioms += self._idioms(number, body.get("unless", ()), where)
            numbers[name] = number
        return numbers, patterns, idioms

    def _read_cues(self) -> tuple[tuple[Cue, ...], list[tuple[int, Pattern]]]:
        cues: list[Cue] = []
        patterns: list[tuple[int, Pattern]] = []
        for name, value in self._section("cues").items():
            where = f"cue {name}"
            body = self._mapping(value, where)
            self._only(body, {"mood", "weight", "any_of"}, where)
            mood = self._text(body, "mood", where)
            if mood not in set(Mood):
                self._fail(where, f"mood is one of {', '.join(Mood)}")
            patterns += self._patterns(len(cues), body.get("any_of", ()), where)
            cues.append(Cue(Mood(mood), self._units(body, "weight", where) / UNITS))
        return tuple(cues), patterns

    def _read_questions(self, rules: Sequence[Rule], facts: Mapping[str, int]) -> tuple[Question, ...]:
        kinds = {rule.kind for rule in rules}
        questions = []
        for name, value in self._section("questions").items():
            where = f"question {name}"
            body = self._mapping(value, where)
            self._only(body, {"kinds", "answered_by"}, where)
            asked_for = frozenset(self._texts(body.get("kinds", ()), where))
            if unknown := sorted(asked_for - kinds):
                self._fail(where, f"no rule is of kind {unknown[0]!r}")
            answers = frozenset(self._texts(body.get("answered_by", ()), where))
            names = {rule.name for rule in rules}
            if strange := sorted(answers - names - kinds - facts.keys() - {_PLACE_ANSWER}):
                self._fail(where, f"{strange[0]!r} is no fact, rule or kind of rule")
            questions.append(
                Question(
                    name=name,
                    kinds=asked_for,
                    answered_by_facts=frozenset(facts[answer] for answer in answers if answer in facts),
                    answered_by_rules=frozenset(
                        number for number, rule in enumerate(rules) if answers & {rule.name, rule.kind}
                    ),
                    answered_by_place=_PLACE_ANSWER in answers,
                )
            )
        return tuple(questions)

    def _read_places(self) -> PlaceWords:
        section = self._section("places")
        fields = ("plain_roads", "short_roads", "numbered_roads", "landmarks", "never_in_names")
        self._only(section, set(fields), "places")
        words = {
            name: frozenset(word for line in self._texts(section.get(name), f"places, {name}") for word in line.split())
            for name in fields
        }
        return PlaceWords(
            roads=words["plain_roads"] | words["short_roads"],
            plain_roads=words["plain_roads"],
            numbered_roads=words["numbered_roads"],
            landmarks=words["landmarks"],
            never_in_names=words["never_in_names"],
        )

    def _patterns(self, label: int, texts: object, where: str) -> list[tuple[int, Pattern]]:
        return [(label, self._pattern(text, where)) for text in self._texts(texts, where)]

    def _idioms(self, label: int, texts: object, where: str) -> list[tuple[int, Pattern]]:
        found = self._patterns(label, texts, f"{where}, unless")
        if any(len(pattern.elements) == 1 for _, pattern in found):
            self._fail(where, "unless needs a phrase of two or more words: one word must never silence a finding")
        return found

    def _pattern(self, text: str, where: str) -> Pattern:
        try:
            return compile_pattern(text, self._classes)
        except PatternError as error:
            self._fail(where, str(error), error)

    def _number(self, name: str, numbers: Mapping[str, int], where: str) -> int:
        if name not in numbers:
            self._fail(where, f"{name!r} is no rule above this one")
        return numbers[name]

    def _section(self, name: str) -> Mapping[str, Any]:
        return self._mapping(self._document.get(name), name)

    def _mapping(self, value: object, where: str) -> Mapping[str, Any]:
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            self._fail(where, "is missing or no mapping of names")
        return value

    def _texts(self, value: object, where: str) -> tuple[str, ...]:
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
            self._fail(where, "a list of texts is expected (numbers need quotes)")
        return tuple(value)

    def _text(self, body: Mapping[str, Any], field: str, where: str) -> str:
        value = body.get(field)
        if not isinstance(value, str) or not value:
            self._fail(where, f"{field} is missing or no text")
        return value

    def _flag(self, body: Mapping[str, Any], field: str, where: str) -> bool:
        value = body.get(field, "false")
        if value not in {"true", "false"}:
            self._fail(where, f"{field} is true or false")
        return bool(value == "true")

    def _units(self, body: Mapping[str, Any], field: str, where: str) -> int:
        value = body.get(field)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            self._fail(where, f"{field} is missing or not between 0 and 1")
        return round(value * UNITS)

    def _only(self, body: Mapping[str, Any], fields: Iterable[str], where: str) -> None:
        if unknown := sorted(set(body) - set(fields)):
            self._fail(where, f"{unknown[0]!r} means nothing here")

    def _fail(self, where: str, what: str, cause: Exception | None = None) -> NoReturn:
        raise RulesError(f"{self._path}: {where}: {what}") from cause
