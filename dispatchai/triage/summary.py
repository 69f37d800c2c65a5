"""The text that a dispatcher reads beside the score: the caller's state, open questions, one line for the queue.

Decides their wording. `rules` decides what was found, `scoring` how much it weighs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

from dispatchai.records.values import AudioSummary, CallState, CallStatus, Emotion, StatedPlace
from dispatchai.triage.patterns import visible
from dispatchai.triage.rules import Rules
from dispatchai.triage.rules_file import Mood

LISTENING = "Listening…"
"""The summary of a call in progress in which no word has been understood yet."""

NOT_ANSWERED = "The caller hung up before the call was answered."
NEVER_HEARD = "The caller was never heard: no audio came in."
NOTHING_UNDERSTOOD = "No words were understood."
"""The summaries of a call that is over and in which no word was understood."""

_MAX_DETAILS = 3
_MAX_QUOTE = 80
"""Characters of the caller's words in the summary of a call in which no rule found anything."""

_AUDIO_SHARE = 0.25
"""Most that loudness onset adds to the intensity: by itself it never shows more than TENSE."""
_ANGRY_FROM = 0.3
_HIGHLY_DISTRESSED_FROM = 0.7
_DISTRESSED_FROM = 0.4
_TENSE_FROM = 0.15


def share(value: float) -> float:
    """`value` within 0 and 1; 0 if it is no finite number."""
    return min(1.0, max(0.0, value)) if isfinite(value) else 0.0


@dataclass(frozen=True, slots=True)
class MoodOfWords:
    """The caller's state by words alone. `fear` and `anger` are sums of the weights of cues."""

    fear: float
    anger: float
    sentiment: str


def mood_of_words(weights: Mapping[Mood, Sequence[float]], found: Collection[int], rules: Rules) -> MoodOfWords:
    """The caller's state by words. `weights` are those of the strongest utterances; `found` has the rules that hold."""
    heard = {mood: sum(weights[mood]) for mood in Mood}
    fear, anger = heard[Mood.FEAR], heard[Mood.ANGER]
    medium = rules.levels[-1][1]
    if fear or anger or any(rules.rules[number].units >= medium for number in found):
        sentiment = "negative"
    elif heard[Mood.RELIEF]:
        sentiment = "positive"
    else:
        sentiment = "neutral"
    return MoodOfWords(fear, anger, sentiment)


def emotion(mood: MoodOfWords, audio: AudioSummary) -> Emotion:
    """The caller's state by words and voice."""
    intensity = round(min(1.0, max(mood.fear, mood.anger) + _AUDIO_SHARE * share(audio.distress_score)), 4)
    if mood.anger >= _ANGRY_FROM and mood.anger > mood.fear:
        label = "ANGRY"
    elif intensity >= _HIGHLY_DISTRESSED_FROM:
        label = "HIGHLY_DISTRESSED"
    elif intensity >= _DISTRESSED_FROM:
        label = "DISTRESSED"
    elif intensity >= _TENSE_FROM:
        label = "TENSE"
    else:
        label = "CALM"
    return Emotion(label, intensity, mood.sentiment)


def unknowns(
    facts: Collection[int], found: Collection[int], place: StatedPlace | None, rules: Rules
) -> tuple[str, ...]:
    """The open questions of such a call, which the caller has not answered, in the order of the rules file."""
    stated = frozenset(facts)
    holding = frozenset(found)
    kinds = {rules.rules[number].kind for number in holding}
    return tuple(
        question.name
        for question in rules.questions
        if (not question.kinds or question.kinds & kinds)
        and not (question.answered_by_facts & stated)
        and not (question.answered_by_rules & holding)
        and not (question.answered_by_place and place)
    )


def summary(text: str, found: Sequence[int], place: StatedPlace | None, rules: Rules, *, is_whole: bool = True) -> str:
    """The line for the queue: the leading finding, the next ones, the place. `found` is strongest first.

    `text` is what was said, or the end of it if it is not `is_whole`.
    """
    telling = [rules.rules[number] for number in found if rules.rules[number].units]
    if telling and telling[0].units >= rules.unrecognised.units:
        title = telling[0].says
        details = dict.fromkeys(rule.says for rule in telling[1:] if not rule.quiet and rule.says not in title)
        named = ", ".join(list(details)[:_MAX_DETAILS])
        line = f"{_capitalised(title)}{': ' if named else ''}{named}."
    else:
        words = " ".join(visible(text).split())
        quote = words if len(words) <= _MAX_QUOTE and is_whole else f"…{words[1 - _MAX_QUOTE :]}"
        line = f"{_capitalised(rules.unrecognised.says)}: “{quote}”."
    return line if place is None else f"{line} {_capitalised(' '.join(visible(place.text).split()))}."


def summary_without_words(call: CallState, audio: AudioSummary) -> str:
    """The line for the queue of a call in which no word was understood."""
    if call.status is not CallStatus.ENDED:
        return LISTENING
    if audio.audio_seconds:
        return NOTHING_UNDERSTOOD
    return NOT_ANSWERED if call.answered_at is None else NEVER_HEARD


def _capitalised(text: str) -> str:
    return text[0].upper() + text[1:]
