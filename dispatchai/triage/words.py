"""What is kept of a call's words: the last utterances of each stream in full, and of older ones what triage needs.

Older final utterances are folded into the findings, the ends of the text and a few figures. So the state of a call is
bounded however long it lasts, and what is concluded of it is still over all words. A stream is folded by itself, in the
order of its records; only how much is kept of it depends on the number of streams. `scoring` concludes from both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import nlargest
from typing import Final

from dispatchai.records.values import Evidence, Finding, StatedPlace, StreamWords, Utterance, UtteranceKind
from dispatchai.triage.patterns import visible
from dispatchai.triage.rules import Analysis, Place, Rules
from dispatchai.triage.rules_file import Mood

MAX_EVIDENCE: Final = 3
"""Most quotes for one part: the first ones, so that the text does not move while a dispatcher reads it."""

STRONGEST_UTTERANCES: Final = 3
"""Utterances that make the mood: the strongest ones, so that a long polite call does not add up to panic."""

STREAMS_MAX: Final = 64
"""Streams of a call that are followed: each restart of its media makes one, and STREAM_RESTARTS_MAX is 5 by default.
Records of further streams change nothing, and the call is shown as degraded."""

KEPT_UTTERANCES: Final = 32
"""Utterances of a call that are kept in full. The recogniser finishes the utterances of a stream in their order; what
comes later than this many others counts as read before."""

KEPT_CHARS: Final = 16_384
"""Characters of a call that are kept in full."""

KEPT_PARTIALS: Final = 4
"""Partials of a stream that are kept. One is open; others were left by a recogniser that failed."""

EXCERPT_CHARS: Final = 49_152
"""Characters of a call's folded text that are kept, half of them from its beginning: with `KEPT_CHARS` 64 kB, which
75 minutes of talk do not fill."""

LIVE_CHARS: Final = 4_000
"""Characters of text in the assessment of a live call, from its end. Each change of the call writes one, so with the
whole text the topic would grow with the square of the call's length."""

PARTIAL_CHARS: Final = 1_000
"""The same for the text that may still change, which is the end of the last sentence."""

UTTERANCE_CHARS: Final = 16_384
"""Longest text of an utterance that is kept: the recognisers end a segment after half a minute, which has 600
characters. The rest of a longer one is left out."""

ANALYSED_CHARS: Final = 2_048
"""Characters of an utterance that are analysed, from its beginning: half a minute of the fastest speech has 1,000. A
text that rules match at each word costs 100 times one of speech. A call with a longer utterance is shown as
degraded."""

UTTERANCE_WORDS: Final = 512
"""Most words with times of an utterance. If there are more, quotes of it have the times of the whole utterance."""

LAST_CHARS: Final = 1_024
"""How much of the last folded utterance is kept: its last words and the first of the next are read together."""

QUOTE_CHARS: Final = 200
"""Longest quote, and longest place. Those of speech have some twenty words."""

_SHARED_QUOTES_FROM: Final = 4
"""With more streams than this each keeps one quote of a finding."""

NO_WORDS: Final = StreamWords(
    stream_id="",
    until_ms=-(2**63),
    until_id="",
    last=None,
    words=0,
    beginning="",
    omitted=0,
    end="",
    findings=(),
    facts=(),
    fear=(),
    anger=(),
    relief=(),
    place=None,
    seam_place=None,
)
"""The words of a stream of which none was folded."""


class Analyses:
    """The analyses of texts by one set of rules, each made once."""

    def __init__(
        self,
        rules: Rules,
        texts: Mapping[str, Analysis] | None = None,
        seams: Mapping[tuple[str, str], Analysis] | None = None,
        *,
        most_chars: int | None = None,
    ) -> None:
        """`texts` and `seams` are analyses that are known already. `most_chars` is ANALYSED_CHARS by default."""
        self.rules = rules
        self._texts = dict(texts or {})
        self._seams = dict(seams or {})
        self._most_chars = ANALYSED_CHARS if most_chars is None else most_chars

    def of(self, text: str) -> Analysis:
        """The analysis of `text`, or of its beginning if it is longer than what is analysed."""
        if (known := self._texts.get(text)) is None:
            known = self._texts[text] = self.rules.analyse(beginning(text, self._most_chars))
        return known

    def across(self, before: str, after: str) -> Analysis:
        """The analysis of the seam between two texts."""
        if (known := self._seams.get((before, after))) is None:
            known = self._seams[before, after] = self.rules.analyse_seam(before, after)
        return known


def beginning(text: str, most: int) -> str:
    """The beginning of `text`, of at most `most` characters. It ends with a whole word."""
    if len(text) <= most:
        return text
    words, space, _ = text[: most + 1].rpartition(" ")
    return words if space else text[:most]


# --- Quotes and places ------------------------------------------------------------------------------------------------


def quote(utterance: Utterance, span: tuple[int, int]) -> Evidence:
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
    return Evidence(shortened(utterance.text[span[0] : span[1]]), utterance.utterance_id, start_ms, end_ms)


def shortened(text: str) -> str:
    """`text` with at most QUOTE_CHARS characters, all of them visible."""
    text = visible(text)
    return text if len(text) <= QUOTE_CHARS else f"{text[: QUOTE_CHARS - 1]}…"


def quotes_of(utterance: Utterance, analysis: Analysis) -> Iterable[tuple[int, Evidence]]:
    """The findings of an utterance, by number, each with the words that support it."""
    return ((hit.rule, quote(utterance, hit.spans[0])) for hit in analysis.hits)


def seam_quotes_of(before: Utterance, after: Utterance, seam: Analysis) -> Iterable[tuple[int, Evidence]]:
    """The findings across two utterances, each with the words of both."""
    for hit in seam.hits:
        yield hit.rule, quote(before, hit.spans[0])
        yield hit.rule, quote(after, hit.spans[1])


def better_place(known: StatedPlace | None, stated: Iterable[Place | StatedPlace]) -> StatedPlace | None:
    """The most exactly stated place; among equals the last, since callers correct themselves."""
    for place in stated:
        if known is None or place.kind >= known.kind:
            known = StatedPlace(int(place.kind), shortened(place.text))
    return known


# --- Moods ------------------------------------------------------------------------------------------------------------


def weight_of(analysis: Analysis, mood: Mood, rules: Rules) -> float:
    """How strongly an utterance shows `mood`."""
    return sum(cue.weight for number in analysis.cues if (cue := rules.cues[number]).mood is mood)


def strongest(weights: Iterable[float]) -> tuple[float, ...]:
    """The weights that count, largest first."""
    return tuple(nlargest(STRONGEST_UTTERANCES, (weight for weight in weights if weight)))


# --- Text -------------------------------------------------------------------------------------------------------------

Piece = str | int
"""A piece of a text, or the number of characters that are left out in its place."""


def pieces_of(words: StreamWords) -> tuple[Piece, ...]:
    """The folded text of a stream."""
    if words.omitted:
        return words.beginning, words.omitted, words.end
    return tuple(part for part in (words.beginning, words.end) if part)


def ending(pieces: Sequence[Piece], most: int) -> tuple[str, int]:
    """The end of a text without a gap, of at most `most` characters, and how many characters are before it.

    It begins with a whole word.
    """
    shown: list[str] = []
    room, before, cut = most, 0, False
    for piece in reversed(pieces):
        if cut or isinstance(piece, int):
            before, cut = before + (piece if isinstance(piece, int) else len(piece)), True
            continue
        if len(piece) > room:
            before, cut = before + len(piece) - room, True
            piece = piece[len(piece) - room :]
        shown.append(piece)
        room -= len(piece)
    text = "".join(reversed(shown))
    if before and (space := text.find(" ", 0, QUOTE_CHARS)) >= 0:
        before, text = before + space + 1, text[space + 1 :]
    return text, before


def whole(pieces: Sequence[Piece]) -> tuple[str, int]:
    """A text with all that is kept of it, and how many characters are left out where it says so."""
    text = "".join(f" […{piece:,} characters left out…] " if isinstance(piece, int) else piece for piece in pieces)
    return text, sum(piece for piece in pieces if isinstance(piece, int))


def _with_text(words: StreamWords, text: str, most: int) -> StreamWords:
    """`words` with `text` behind their text, of which at most `most` characters are kept."""
    half = most // 2
    beginning, omitted, end = words.beginning, words.omitted, words.end
    if not omitted:
        beginning, end = beginning + end + text, ""
        beginning, end = beginning[:half], beginning[half:]
    else:
        omitted += max(0, len(beginning) - half)
        beginning, end = beginning[:half], end + text
    if (over := len(end) - half) > 0:
        omitted, end = omitted + over, end[over:]
    return replace(words, beginning=beginning, omitted=omitted, end=end)


# --- Folding ----------------------------------------------------------------------------------------------------------


def order_of(utterance: Utterance) -> tuple[int, str]:
    """The place of an utterance in its stream."""
    return utterance.start_ms, utterance.utterance_id


def is_folded(words: StreamWords | None, utterance: Utterance) -> bool:
    """Whether an utterance of the stream, which is not among those kept in full, was folded before."""
    return words is not None and order_of(utterance) <= (words.until_ms, words.until_id)


def trimmed(utterance: Utterance) -> Utterance:
    """`utterance` with at most UTTERANCE_CHARS characters and UTTERANCE_WORDS words."""
    if len(utterance.words) > UTTERANCE_WORDS:
        utterance = replace(utterance, words=())
    if len(utterance.text) > UTTERANCE_CHARS:
        utterance = replace(utterance, text=utterance.text[:UTTERANCE_CHARS], words=())
    return utterance


def settle(
    kept: Sequence[Utterance], words: StreamWords | None, streams: int, analyses: Analyses
) -> tuple[tuple[Utterance, ...], StreamWords | None]:
    """Fold the oldest of the `kept` utterances of a stream, in their order, that are more than its share.

    `words` are those folded before, `streams` the number of streams among which the call's share is divided.
    """
    most = max(2, KEPT_UTTERANCES // streams)
    most_chars = KEPT_CHARS // streams
    partials = [one for one in kept if one.kind is UtteranceKind.PARTIAL]
    left = set(partials[:-KEPT_PARTIALS])
    rest = [one for one in kept if one not in left] if left else list(kept)
    finals = len(rest) - len(partials) + len(left)
    chars = sum(len(one.text) for one in rest if one.kind is UtteranceKind.FINAL)
    if words is not None:
        words = _within_share(words, streams)
    at = 0
    while finals > most or (chars > most_chars and finals):
        if rest[at].kind is UtteranceKind.PARTIAL:
            at += 1
            continue
        folded = rest.pop(at)
        finals, chars = finals - 1, chars - len(folded.text)
        words = fold(words, folded, streams, analyses)
    return tuple(rest), words


def _within_share(words: StreamWords, streams: int) -> StreamWords:
    """`words` with no more text and quotes than their share among `streams`."""
    most = EXCERPT_CHARS // streams
    if len(words.beginning) > most // 2 or len(words.end) > most // 2:
        words = _with_text(words, "", most)
    most_quotes = _most_quotes(streams)
    if any(len(one.quotes) + len(one.seam_quotes) > most_quotes for one in words.findings):
        words = replace(words, findings=tuple(_with_quotes(one, (), (), most_quotes) for one in words.findings))
    return words


def _most_quotes(streams: int) -> int:
    return MAX_EVIDENCE if streams <= _SHARED_QUOTES_FROM else 1


def _with_quotes(known: Finding, quotes: Sequence[Evidence], seam: Sequence[Evidence], most: int) -> Finding:
    """`known` with more quotes. Those within an utterance are shown before those across two."""
    within = (*known.quotes, *quotes)[:most]
    return Finding(known.rule, within, (*known.seam_quotes, *seam)[: most - len(within)])


@dataclass(slots=True)
class _Found:
    """The quotes of one rule in an utterance, and in the seam before it."""

    quotes: list[Evidence]
    seam: list[Evidence]


def fold(words: StreamWords | None, utterance: Utterance, streams: int, analyses: Analyses) -> StreamWords:
    """`words` of a stream with its next final `utterance` in them."""
    rules = analyses.rules
    if words is None:
        words = replace(NO_WORDS, stream_id=utterance.stream_id)
    until_ms, until_id = max((words.until_ms, words.until_id), order_of(utterance))
    words = replace(words, until_ms=until_ms, until_id=until_id)
    if not utterance.text:
        return words
    analysis = analyses.of(utterance.text)
    found: dict[str, _Found] = {}
    for rule, one in quotes_of(utterance, analysis):
        found.setdefault(rules.rules[rule].name, _Found([], [])).quotes.append(one)
    facts = {rules.facts[number] for number in analysis.facts}
    seam_place = words.seam_place
    if words.last is not None:
        seam = analyses.across(words.last.text, utterance.text)
        for rule, one in seam_quotes_of(words.last, utterance, seam):
            found.setdefault(rules.rules[rule].name, _Found([], [])).seam.append(one)
        facts |= {rules.facts[number] for number in seam.facts}
        seam_place = better_place(seam_place, seam.places)
    findings = {one.rule: one for one in words.findings}
    for name, new in found.items():
        known = findings.get(name) or Finding(name, (), ())
        findings[name] = _with_quotes(known, new.quotes, new.seam, _most_quotes(streams))
    words = _with_text(words, f" {utterance.text}" if words.last else utterance.text, EXCERPT_CHARS // streams)
    return replace(
        words,
        last=_end_of(utterance),
        words=words.words + analysis.words,
        findings=tuple(findings[name] for name in sorted(findings)),
        facts=tuple(sorted(facts.union(words.facts))),
        place=better_place(words.place, analysis.places),
        seam_place=seam_place,
        fear=_stronger(words.fear, analysis, Mood.FEAR, rules),
        anger=_stronger(words.anger, analysis, Mood.ANGER, rules),
        relief=_stronger(words.relief, analysis, Mood.RELIEF, rules),
    )


def _stronger(known: tuple[float, ...], analysis: Analysis, mood: Mood, rules: Rules) -> tuple[float, ...]:
    return strongest((*known, weight_of(analysis, mood, rules))) if analysis.cues else known


def folded_weights(words: StreamWords, mood: Mood) -> tuple[float, ...]:
    """How strongly the folded utterances of a stream that count show `mood`."""
    match mood:
        case Mood.FEAR:
            return words.fear
        case Mood.ANGER:
            return words.anger
        case Mood.RELIEF:
            return words.relief


def _end_of(utterance: Utterance) -> Utterance:
    if len(utterance.text) <= LAST_CHARS:
        return utterance
    return replace(utterance, text=utterance.text[-LAST_CHARS:], words=())
