"""Properties of every conclusion, whatever is said."""

from __future__ import annotations

import dataclasses
import math

from hypothesis import given
from hypothesis import strategies as st

from dispatchai.records import Assessment, AudioSummary, RiskLevel, Utterance, UtteranceKind
from dispatchai.triage import Rules, conclude
from evals.triage import read_lines

RULES = Rules.load()
LINES = [line.say for line in read_lines()]
VOCABULARY = sorted({word for line in LINES for word in line.split()} | {"not", "no", "but", "and", ".", ","})

sentences = st.lists(st.sampled_from(VOCABULARY), max_size=12).map(" ".join)
texts = st.one_of(st.sampled_from(LINES), sentences, st.text(max_size=40))
calls = st.lists(texts, max_size=6)
shares = st.floats(0, 1)


def utterance(number: int, text: str) -> Utterance:
    return Utterance("s", f"u{number}", 0, UtteranceKind.FINAL, text, number, number, None, (), "typed", 0, number)


def utterances(said: list[str]) -> list[Utterance]:
    return [utterance(number, text) for number, text in enumerate(said)]


def audio(distress: float) -> AudioSummary:
    return AudioSummary(distress, distress, distress, False, 1.0, 1.0, 0)


@given(calls, shares)
def test_the_parts_add_up_to_the_score(said: list[str], distress: float) -> None:
    conclusion = conclude(utterances(said), audio(distress), RULES)
    assert round(math.fsum(part.points for part in conclusion.parts), 4) == conclusion.risk.score
    assert 0 <= conclusion.risk.score <= 1
    assert all(part.points == round(part.points, 4) for part in conclusion.parts)
    points = [part.points for part in conclusion.parts]
    assert points == sorted(points, reverse=True)


@given(calls, texts, shares)
def test_another_utterance_never_lowers_the_score_or_removes_a_tag(said: list[str], more: str, distress: float) -> None:
    before = conclude(utterances(said), audio(distress), RULES)
    after = conclude(utterances([*said, more]), audio(distress), RULES)
    assert after.risk.score >= before.risk.score
    assert set(before.tags) <= set(after.tags)
    assert set(before.services) <= set(after.services)


@given(calls, shares, shares)
def test_more_distress_never_lowers_the_score(said: list[str], one: float, other: float) -> None:
    low, high = sorted((one, other))
    calm, loud = (conclude(utterances(said), audio(distress), RULES).risk.score for distress in (low, high))
    assert 0 <= loud - calm <= 0.1


@given(st.permutations(range(6)), st.lists(st.sampled_from(LINES), min_size=6, max_size=6))
def test_tags_and_services_do_not_depend_on_the_order_of_utterances(order: list[int], said: list[str]) -> None:
    # Each utterance in its own stream: across a seam two utterances of one stream may say something together.
    spoken = [dataclasses.replace(one, stream_id=one.utterance_id) for one in utterances(said)]
    straight = conclude(spoken, audio(0), RULES)
    mixed = conclude([spoken[number] for number in order], audio(0), RULES)
    assert (straight.tags, straight.services, straight.risk) == (mixed.tags, mixed.services, mixed.risk)


@given(calls)
def test_evidence_is_found_word_for_word_in_its_utterance(said: list[str]) -> None:
    spoken = utterances(said)
    by_id = {one.utterance_id: one.text for one in spoken}
    for part in conclude(spoken, audio(0.5), RULES).parts:
        for evidence in part.evidence:
            assert evidence.utterance_id is not None
            assert evidence.text
            assert evidence.text in by_id[evidence.utterance_id]


@given(st.lists(st.text(), max_size=5), st.floats(allow_nan=True, allow_infinity=True))
def test_no_text_or_signal_makes_triage_fail(said: list[str], distress: float) -> None:
    conclusion = conclude(utterances(said), audio(distress), RULES)
    assert conclusion.summary
    assert "\n" not in conclusion.summary


def test_a_very_long_text_is_read_to_its_end() -> None:
    text = "so I was telling my sister about the weather and " * 1000 + "he is not breathing"
    assert conclude([utterance(0, text)], audio(0), RULES).risk.level is RiskLevel.CRITICAL


def test_a_conclusion_has_the_fields_of_an_assessment() -> None:
    conclusion = conclude([], audio(0), RULES)
    ours = {field.name: field.type for field in dataclasses.fields(conclusion)}
    theirs = {field.name: field.type for field in dataclasses.fields(Assessment)}
    assert ours.items() <= theirs.items()
