"""From a call's utterances to the conclusions of triage: each point of the score has its reason and its words.

Decides how findings are weighed against each other. `rules` decides which words make a finding, `summary` the words for
the dispatcher, `ranking` the order of calls.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from dispatchai.records.values import (
    AudioSummary,
    Category,
    Emotion,
    Evidence,
    Part,
    Risk,
    RiskLevel,
    Service,
    Utterance,
    UtteranceKind,
)
from dispatchai.triage.rules import UNITS, Analysis, Rule, Rules
from dispatchai.triage.summary import (
    LISTENING,
    MoodOfWords,
    best_place,
    emotion,
    mood_of_words,
    share,
    summary,
    unknowns,
)

__all__ = ["MAX_EVIDENCE", "Conclusion", "Reading", "conclude", "read", "weigh"]

MAX_EVIDENCE = 3
"""Most quotes for one part: the first ones, so that the text does not move while a dispatcher reads it."""


@dataclass(frozen=True, slots=True)
class Conclusion:
    """The conclusions of triage about a call. The fields are those of the record Assessment."""

    emotion: Emotion
    category: Category
    services: tuple[Service, ...]
    tags: tuple[str, ...]
    risk: Risk
    parts: tuple[Part, ...]
    unknowns: tuple[str, ...]
    summary: str


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """The input of a reading, and the analysis of each piece of it, which the next reading of the call can use."""

    utterances: tuple[Utterance, ...]
    rules: Rules
    stream_order: tuple[str, ...]
    analyses: Mapping[str, Analysis]
    seams: Mapping[tuple[str, str], Analysis]


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """The conclusions from the words of a call alone: the costly part.

    `final_text` and `partial_text` are the texts of final and of partial utterances, `text` is both in order. `source`
    is the input.
    """

    source: Source
    text: str
    final_text: str
    partial_text: str
    understood: bool
    mood: MoodOfWords
    category: Category
    services: tuple[Service, ...]
    tags: tuple[str, ...]
    addends: tuple[tuple[int, Part], ...]
    """The parts of the words with their points in units, largest first."""
    unknowns: tuple[str, ...]
    summary: str


def conclude(utterances: Sequence[Utterance], audio: AudioSummary, rules: Rules) -> Conclusion:
    """The conclusions from the caller's words and voice together. A function of its arguments; never raises.

    `utterances` are in order: finals, and at most one trailing partial for each stream.

    The strongest finding leads and gives its full points; every other finding of the call adds its smaller `adds`.
    The voice adds at most `voice.points`. A sum above 1 is cut by a negative part "ceiling". So the score never
    falls when an utterance is appended or the voice becomes more distressed. Without a word, or with none that a rule
    understood, the level is UNKNOWN.
    """
    return weigh(read(tuple(utterances), rules), audio, rules)


def weigh(reading: Reading, audio: AudioSummary, rules: Rules) -> Conclusion:
    """`conclude` from words that were read before."""
    parts, units = _score(reading.addends, audio, rules) if reading.understood else ((), 0)
    return Conclusion(
        emotion=emotion(reading.mood, audio) if reading.understood else Emotion("UNKNOWN", 0.0, "neutral"),
        category=reading.category,
        services=reading.services,
        tags=reading.tags,
        risk=Risk(_level(units, reading.category, rules) if reading.understood else RiskLevel.UNKNOWN, units / UNITS),
        parts=parts,
        unknowns=reading.unknowns,
        summary=reading.summary,
    )


def read(
    utterances: tuple[Utterance, ...],
    rules: Rules,
    stream_order: tuple[str, ...] = (),
    *,
    before: Reading | None = None,
) -> Reading:
    """The reading of `utterances`. Those of the streams in `stream_order` come first, in that order.

    A function of these three; never raises. `before` is an earlier reading of the same call, which makes it cheaper,
    since known texts are not analysed again. It is returned as it is for the identical tuple, which a call's state
    keeps from one signal to the next; to compare the words would cost as much as to read them.
    """
    if before is None or before.source.rules is not rules:
        return _read(utterances, rules, stream_order, {}, {})
    known = before.source
    if known.utterances is utterances and known.stream_order == stream_order:
        return before
    return _read(utterances, rules, stream_order, known.analyses, known.seams)


def _in_order(utterances: tuple[Utterance, ...], stream_order: tuple[str, ...]) -> tuple[Utterance, ...]:
    place = {stream_id: number for number, stream_id in enumerate(stream_order)}
    return tuple(sorted(utterances, key=lambda one: place.get(one.stream_id, len(place)))) if place else utterances


def _read(
    utterances: tuple[Utterance, ...],
    rules: Rules,
    stream_order: tuple[str, ...],
    known: Mapping[str, Analysis],
    known_seams: Mapping[tuple[str, str], Analysis],
) -> Reading:
    spoken = [utterance for utterance in _in_order(utterances, stream_order) if utterance.text]
    joined = [pair for pair in pairwise(spoken) if pair[0].stream_id == pair[1].stream_id]
    said = {text: known.get(text) or rules.analyse(text) for text in dict.fromkeys(one.text for one in spoken)}
    across = {
        texts: known_seams.get(texts) or rules.analyse_seam(*texts)
        for texts in dict.fromkeys((before.text, after.text) for before, after in joined)
    }
    analyses = [said[utterance.text] for utterance in spoken]
    seams = [(before, after, across[before.text, after.text]) for before, after in joined]
    everything = [*analyses, *(seam for _, _, seam in seams)]

    evidence = _evidence(spoken, analyses, seams)
    _combine(evidence, rules)
    found = sorted(evidence, key=lambda number: (-rules.rules[number].units, number))
    understood = any(analysis.words for analysis in analyses)
    place = best_place(everything)
    category, services = _category(found, rules)
    return Reading(
        source=Source(utterances, rules, stream_order, said, across),
        text=" ".join(one.text for one in spoken),
        final_text=" ".join(one.text for one in spoken if one.kind is UtteranceKind.FINAL),
        partial_text=" ".join(one.text for one in spoken if one.kind is UtteranceKind.PARTIAL),
        understood=understood,
        mood=mood_of_words(analyses, found, rules),
        category=category,
        services=services,
        tags=tuple(dict.fromkeys(tag for number in found for tag in rules.rules[number].tags)),
        addends=_addends(found, evidence, rules),
        unknowns=unknowns(everything, found, place, rules),
        summary=summary(spoken, found, place, rules) if understood else LISTENING,
    )


# --- Findings --------------------------------------------------------------------------------------------------------

_Evidence = dict[int, tuple[Evidence, ...]]
"""The words that support each rule that holds, by its number."""


def _evidence(
    spoken: Sequence[Utterance],
    analyses: Sequence[Analysis],
    seams: Sequence[tuple[Utterance, Utterance, Analysis]],
) -> _Evidence:
    found: _Evidence = {}

    def add(rule: int, *pieces: tuple[Utterance, tuple[int, int]]) -> None:
        known = found.get(rule, ())
        if len(known) < MAX_EVIDENCE:
            found[rule] = (*known, *(_quote(utterance, span) for utterance, span in pieces))[:MAX_EVIDENCE]

    for utterance, analysis in zip(spoken, analyses, strict=True):
        for hit in analysis.hits:
            add(hit.rule, (utterance, hit.spans[0]))
    for before, after, seam in seams:
        for hit in seam.hits:
            add(hit.rule, (before, hit.spans[0]), (after, hit.spans[1]))
    return found


def _quote(utterance: Utterance, span: tuple[int, int]) -> Evidence:
    """The words at the character offsets `span`, with their own times if the recogniser gave any."""
    start_ms, end_ms = utterance.start_ms, utterance.end_ms
    cursor = 0
    times: list[tuple[int, int]] = []
    for word in utterance.words:
        at = utterance.text.find(word.text, cursor)
        if at < 0:
            times = []
            break
        cursor = at + len(word.text)
        if at < span[1] and cursor > span[0]:
            times.append((word.start_ms, word.end_ms))
    if times:
        start_ms, end_ms = min(start for start, _ in times), max(end for _, end in times)
    return Evidence(utterance.text[span[0] : span[1]], utterance.utterance_id, start_ms, end_ms)


def _combine(found: _Evidence, rules: Rules) -> None:
    """Add the combined rules that hold. They name only earlier rules, so one pass in order is enough."""
    for number, rule in enumerate(rules.rules):
        if rule.when_all and all(found.keys() & choice for choice in rule.when_all):
            first = [min(found.keys() & choice) for choice in rule.when_all]
            evidence = dict.fromkeys(item for one in first for item in found[one][:1])
            found[number] = tuple(evidence)[:MAX_EVIDENCE]


# --- Score -----------------------------------------------------------------------------------------------------------


def _addends(found: Sequence[int], evidence: _Evidence, rules: Rules) -> tuple[tuple[int, Part], ...]:
    """The parts of the words with their units, largest first. `found` is strongest first."""
    leader = rules.rules[found[0]] if found else rules.unrecognised
    if leader.units < rules.unrecognised.units:
        leader = rules.unrecognised
    addends: list[tuple[int, Part]] = []
    if leader is rules.unrecognised:
        addends.append((leader.units, _part(leader, leader.units, ())))
    for number in found:
        rule = rules.rules[number]
        units = rule.units if rule is leader else rule.adds
        if units or not rule.units:  # a rule without points is a note and is shown; one that adds nothing is not
            addends.append((units, _part(rule, units, evidence[number])))
    addends.sort(key=_units)
    return tuple(addends)


def _score(of_words: tuple[tuple[int, Part], ...], audio: AudioSummary, rules: Rules) -> tuple[tuple[Part, ...], int]:
    """The parts, largest first and a ceiling last, and the units of the score. `of_words` is largest first."""
    addends = of_words
    voice = round(rules.voice_units * share(audio.distress_score))
    if voice:
        of_voice = (voice, Part("voice_distress", voice / UNITS, rules.voice_reason, ()))
        at = bisect_right(addends, -voice, key=_units)
        addends = (*addends[:at], of_voice, *addends[at:])
    total = sum(units for units, _ in addends)
    if total > UNITS:
        cut = UNITS - total
        addends = (*addends, (cut, Part("ceiling", cut / UNITS, "A score ends at 1.0.", ())))
    return tuple(part for _, part in addends), min(total, UNITS)


def _units(addend: tuple[int, Part]) -> int:
    return -addend[0]


def _part(rule: Rule, units: int, evidence: tuple[Evidence, ...]) -> Part:
    return Part(rule.name, units / UNITS, rule.reason, evidence)


def _level(units: int, category: Category, rules: Rules) -> RiskLevel:
    """The level of the score. Words that no rule understood are an unknown risk, not a low one."""
    level = next((level for level, threshold in rules.levels if units >= threshold), RiskLevel.LOW)
    return RiskLevel.UNKNOWN if level is RiskLevel.LOW and category is Category.UNKNOWN else level


# --- Category --------------------------------------------------------------------------------------------------------


def _category(found: Sequence[int], rules: Rules) -> tuple[Category, tuple[Service, ...]]:
    """The leading category and all services called for, heaviest first.

    A finding weighs its points times its weight for the service. Only the heaviest finding of a service counts: many
    small findings must not outweigh a great one.
    """
    weights: dict[Category, float] = {}
    for number in found:
        rule = rules.rules[number]
        for category, weight in rule.services:
            weights[category] = max(weights.get(category, 0.0), weight * rule.units)
    order = sorted(weights, key=lambda category: (-weights[category], list(Category).index(category)))
    services = tuple(Service(category) for category in order if category is not Category.OTHER)
    return (order[0] if order else Category.UNKNOWN), services
