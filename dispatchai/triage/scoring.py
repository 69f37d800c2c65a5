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
    StatedPlace,
    StreamWords,
    Utterance,
    UtteranceKind,
)
from dispatchai.triage.rules import UNITS, Analysis, Rule, Rules
from dispatchai.triage.rules_file import Mood
from dispatchai.triage.summary import LISTENING, MoodOfWords, emotion, mood_of_words, share, summary, unknowns
from dispatchai.triage.words import (
    LIVE_CHARS,
    MAX_EVIDENCE,
    NO_WORDS,
    PARTIAL_CHARS,
    Analyses,
    Piece,
    better_place,
    ending,
    folded_weights,
    pieces_of,
    quote,
    seam_quotes_of,
    strongest,
    weight_of,
)

__all__ = ["MAX_EVIDENCE", "Conclusion", "Reading", "conclude", "read", "weigh"]


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
    words: tuple[StreamWords, ...]
    rules: Rules
    stream_order: tuple[str, ...]
    analyses: Mapping[str, Analysis]
    seams: Mapping[tuple[str, str], Analysis]

    def known(self, rules: Rules) -> Analyses:
        """Its analyses, if they are by `rules`."""
        return Analyses(rules, self.analyses, self.seams) if rules is self.rules else Analyses(rules)


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """The conclusions from the words of a call alone: the costly part.

    `text` is the text of all utterances in order, in pieces; `final_end` the end of that of the final ones, with
    `final_before` characters before it, and `partial_end` the end of that of the partial ones. `source` is the input.
    """

    source: Source
    text: tuple[Piece, ...]
    final_end: str
    final_before: int
    partial_end: str
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
    All of a text is analysed, however long it is; the step of a call bounds it (`words.ANALYSED_CHARS`).
    The voice adds at most `voice.points`. A sum above 1 is cut by a negative part "ceiling". So the score never
    falls when an utterance is appended or the voice becomes more distressed. Without a word, or with none that a rule
    understood, the level is UNKNOWN.
    """
    given = tuple(utterances)
    analyses = Analyses(rules, most_chars=max((len(one.text) for one in given), default=0))
    return weigh(_read(given, (), (), analyses), audio, rules)


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
    words: tuple[StreamWords, ...] = (),
    before: Reading | None = None,
) -> Reading:
    """The reading of `utterances`, and of the older `words` of their streams. Those of the streams in `stream_order`
    come first, in that order.

    A function of these four; never raises. `before` is an earlier reading of the same call, which makes it cheaper,
    since known texts are not analysed again. It is returned as it is for the identical tuples, which a call's state
    keeps from one signal to the next; to compare the words would cost as much as to read them.
    """
    if before is None:
        return _read(utterances, words, stream_order, Analyses(rules))
    known = before.source
    if (
        known.rules is rules
        and known.utterances is utterances
        and known.words is words
        and known.stream_order == stream_order
    ):
        return before
    return _read(utterances, words, stream_order, known.known(rules))


@dataclass(frozen=True, slots=True)
class _Stream:
    """What is known of the words of a stream: the older ones folded, and the utterances kept in full."""

    folded: StreamWords
    spoken: tuple[Utterance, ...]
    said: tuple[Analysis, ...]
    seams: tuple[tuple[Utterance, Utterance, Analysis], ...]


def _streams(
    utterances: tuple[Utterance, ...],
    words: tuple[StreamWords, ...],
    stream_order: tuple[str, ...],
    analyses: Analyses,
) -> list[_Stream]:
    """The streams in order: those of `stream_order`, then the others as they are given."""
    folded = {one.stream_id: one for one in words}
    spoken: dict[str, list[Utterance]] = {}
    for utterance in utterances:
        if utterance.text:
            spoken.setdefault(utterance.stream_id, []).append(utterance)
    names = sorted({*folded, *spoken}) if folded else list(spoken)
    place = {stream_id: number for number, stream_id in enumerate(stream_order)}
    streams = []
    for name in sorted(names, key=lambda name: place.get(name, len(place))):
        old, new = folded.get(name, NO_WORDS), tuple(spoken.get(name, ()))
        joined = pairwise((old.last, *new) if old.last else new)
        streams.append(
            _Stream(
                old,
                new,
                tuple(analyses.of(one.text) for one in new),
                tuple((one, other, analyses.across(one.text, other.text)) for one, other in joined),
            )
        )
    return streams


def _read(
    utterances: tuple[Utterance, ...],
    words: tuple[StreamWords, ...],
    stream_order: tuple[str, ...],
    analyses: Analyses,
) -> Reading:
    rules = analyses.rules
    streams = _streams(utterances, words, stream_order, analyses)
    evidence = _evidence(streams, rules)
    _combine(evidence, rules)
    found = sorted(evidence, key=lambda number: (-rules.rules[number].units, number))
    understood = any(stream.folded.words or any(one.words for one in stream.said) for stream in streams)
    place = _place(streams)
    category, services = _category(found, rules)
    text = _text(streams, (UtteranceKind.FINAL, UtteranceKind.PARTIAL))
    final_end, final_before = ending(_text(streams, (UtteranceKind.FINAL,)), LIVE_CHARS)
    partial_end, partial_before = ending(_text(streams, (UtteranceKind.PARTIAL,), folded=False), PARTIAL_CHARS)
    quoted, before_quoted = ending(text, LIVE_CHARS)
    return Reading(
        source=Source(
            utterances,
            words,
            rules,
            stream_order,
            {one.text: said for stream in streams for one, said in zip(stream.spoken, stream.said, strict=True)},
            {(one.text, other.text): seam for stream in streams for one, other, seam in stream.seams},
        ),
        text=text,
        final_end=final_end,
        final_before=final_before,
        partial_end=f"… {partial_end}" if partial_before else partial_end,
        understood=understood,
        mood=mood_of_words(_weights(streams, rules), found, rules),
        category=category,
        services=services,
        tags=tuple(dict.fromkeys(tag for number in found for tag in rules.rules[number].tags)),
        addends=_addends(found, evidence, rules),
        unknowns=unknowns(_facts(streams, rules), found, place, rules),
        summary=summary(quoted, found, place, rules, is_whole=not before_quoted) if understood else LISTENING,
    )


def _text(streams: Sequence[_Stream], kinds: Sequence[UtteranceKind], *, folded: bool = True) -> tuple[Piece, ...]:
    """The text of the utterances of `kinds`, and of the `folded` ones."""
    pieces: list[Piece] = []
    for stream in streams:
        old = pieces_of(stream.folded) if folded else ()
        if old and pieces:
            pieces.append(" ")
        pieces += old
        for one in stream.spoken:
            if one.kind in kinds:
                pieces.append(f" {one.text}" if pieces else one.text)
    return tuple(pieces)


# --- Findings --------------------------------------------------------------------------------------------------------

_Evidence = dict[int, tuple[Evidence, ...]]
"""The words that support each rule that holds, by its number."""


def _evidence(streams: Sequence[_Stream], rules: Rules) -> _Evidence:
    """The first quotes of each rule within an utterance, then the first across two."""
    found: _Evidence = {}

    def add(rule: int, *quotes: Evidence) -> None:
        known = found.get(rule, ())
        if len(known) < MAX_EVIDENCE:
            found[rule] = (*known, *quotes)[:MAX_EVIDENCE]

    for stream in streams:
        for finding in stream.folded.findings:
            if (rule := rules.numbers.get(finding.rule)) is not None and finding.quotes:
                add(rule, *finding.quotes)
        for utterance, analysis in zip(stream.spoken, stream.said, strict=True):
            # To look for the words of a quote costs more than to find its rule.
            for hit in analysis.hits:
                if len(found.get(hit.rule, ())) < MAX_EVIDENCE:
                    add(hit.rule, quote(utterance, hit.spans[0]))
    for stream in streams:
        for finding in stream.folded.findings:
            if (rule := rules.numbers.get(finding.rule)) is not None and finding.seam_quotes:
                add(rule, *finding.seam_quotes)
        for before, after, seam in stream.seams:
            for rule, part in seam_quotes_of(before, after, seam):
                add(rule, part)
    return found


def _place(streams: Sequence[_Stream]) -> StatedPlace | None:
    """The most exactly stated place of the call."""
    best: StatedPlace | None = None
    for stream in streams:
        best = better_place(best, () if stream.folded.place is None else (stream.folded.place,))
        best = better_place(best, (place for one in stream.said for place in one.places))
    for stream in streams:
        best = better_place(best, () if stream.folded.seam_place is None else (stream.folded.seam_place,))
        best = better_place(best, (place for _, _, seam in stream.seams for place in seam.places))
    return best


def _facts(streams: Sequence[_Stream], rules: Rules) -> frozenset[int]:
    """The facts that the caller stated, by number."""
    folded = {name for stream in streams for name in stream.folded.facts}
    facts = {number for number, name in enumerate(rules.facts) if name in folded} if folded else set[int]()
    for stream in streams:
        facts.update(*(one.facts for one in stream.said), *(seam.facts for _, _, seam in stream.seams))
    return frozenset(facts)


def _weights(streams: Sequence[_Stream], rules: Rules) -> dict[Mood, tuple[float, ...]]:
    """How strongly the utterances that count show each mood."""
    cued = [analysis for stream in streams for analysis in stream.said if analysis.cues]
    return {
        mood: strongest(
            (
                *(weight for stream in streams for weight in folded_weights(stream.folded, mood)),
                *(weight_of(analysis, mood, rules) for analysis in cued),
            )
        )
        for mood in Mood
    }


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
