"""The state of a call is bounded however long it lasts, and what is concluded of it is over all its words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dispatchai.records import (
    Assessment,
    AssessmentKind,
    RiskLevel,
    SignalKind,
    TriageState,
    Utterance,
    UtteranceKind,
    Word,
    decode_as,
    encode,
)
from dispatchai.triage import patterns, words
from dispatchai.triage.ranking import decode_assessed, encode_packet
from dispatchai.triage.scoring import read, weigh
from dispatchai.triage.step import NO_AUDIO, STREAMS_CUT, TEXT_CUT, step
from dispatchai.triage.summary import NOTHING_UNDERSTOOD
from tests.support.recorded_call import DEADLINE, RULES, Record, Recorded, event, partial, signal, speech_end, utterance
from tests.triage.test_step import last_final, mixed, one_by_one, packets, readings, readings_with_crashes, run

STATE_MAX_BYTES = 400_000
"""Far below what Kafka takes of a record, a megabyte."""

LINES = (
    "My husband has collapsed on the floor.",
    "He is not",
    "breathing.",
    "Please hurry, oh God, please!",
    "There is smoke everywhere.",
    "We are at forty two",
    "Garden Street.",
    "No, it is nineteen Park Avenue.",
    "He has a gun.",
    "Nobody is hurt.",
    "Thank you, it is all right now.",
    "I think",
    "",
    "so",
    "You idiots, send somebody!",
    "He is unconscious.",
)

SMALL = {"KEPT_UTTERANCES": 2, "KEPT_CHARS": 30, "KEPT_PARTIALS": 2}

lines = st.lists(st.sampled_from(LINES), max_size=14)


def small(**more: int) -> Any:
    """Limits that a call of a few sentences goes beyond."""
    limits: dict[str, Any] = {**SMALL, **more}
    return patch.multiple(words, **limits)


def speech(stream: str, said: Sequence[str]) -> list[Utterance]:
    """Each line as a partial and a final, then END."""
    made = []
    for number, text in enumerate(said):
        made += [partial(number, text[:6], 5, stream=stream), utterance(number, text, stream=stream)]
    return [*made, speech_end(stream=stream)]


@st.composite
def long_calls(draw: st.DrawFn) -> Recorded:
    """A call of up to three streams that are recognised side by side, ended by its deadline."""
    names = draw(st.sampled_from([["s1"], ["s2", "s1"], ["s2", "s3", "s1"]]))
    return Recorded(
        (event("call.initiated"), event("call.answered", 1), event("call.hangup", 30), DEADLINE),
        tuple(
            one
            for number, name in enumerate(names)
            for one in (
                signal(0, SignalKind.START, stream=name, at_s=4 * number),
                signal(9, SignalKind.END, stream=name, at_s=4 * number),
            )
        ),
        tuple(draw(mixed([speech(name, draw(lines)) for name in names]))),
    )


def everything(call: Recorded) -> tuple[Utterance, ...]:
    """The final utterances of a call, ordered by stream."""
    finals = [one for one in call.transcripts if one.kind is UtteranceKind.FINAL]
    return tuple(sorted(finals, key=lambda one: (one.stream_id, one.start_ms)))


@settings(max_examples=60)
@given(long_calls())
def test_what_is_concluded_of_folded_words_is_what_all_of_them_say(call: Recorded) -> None:
    order = tuple(dict.fromkeys(one.stream_id for one in call.signals))
    reading = read(everything(call), RULES, order)
    with small():
        state, made = run(one_by_one(*call.topics))
    final = last_final(made)
    expected = weigh(reading, final.audio, RULES)
    if not reading.understood:
        expected = replace(expected, summary=NOTHING_UNDERSTOOD)
    assert {name: getattr(final, name) for name in type(expected).__slots__} == {
        name: getattr(expected, name) for name in type(expected).__slots__
    }
    assert (final.transcript, final.transcript_omitted) == words.whole(reading.text)
    assert state is not None
    by_stream = [one.stream_id for one in state.utterances]
    assert all(by_stream.count(name) <= SMALL["KEPT_UTTERANCES"] for name in by_stream)


@settings(max_examples=60)
@given(st.data())
def test_the_packet_and_state_of_a_long_call_do_not_depend_on_batches_topics_or_crashes(data: st.DataObject) -> None:
    call = data.draw(long_calls())
    with small(EXCERPT_CHARS=60):
        state, made = run(one_by_one(*call.topics))
        again, _ = run(data.draw(readings(call)))
        assert again is not None and state is not None
        assert (again.words, again.utterances) == (state.words, state.utterances)
        assert packets(data.draw(readings_with_crashes(call)))[-1] == packets(made)[-1]


@settings(max_examples=40)
@given(st.data())
def test_what_is_kept_of_a_stream_does_not_depend_on_the_pace_of_the_others(data: st.DataObject) -> None:
    streams = [speech(name, data.draw(lines)) for name in ("s1", "s2", "s3")]
    with small(EXCERPT_CHARS=60):
        one, other = (run([data.draw(mixed(streams))])[0] for _ in range(2))
    assert one is not None and other is not None
    assert (one.words, one.utterances) == (other.words, other.utterances)


@settings(max_examples=40)
@given(long_calls())
def test_the_cached_reading_changes_only_the_cost_of_a_long_call(call: Recorded) -> None:
    with small():
        state: TriageState | None = None
        reading, made = None, list[Assessment]()
        for batch in one_by_one(*call.topics):
            stepped = step(state, batch, rules=RULES, reading=reading)
            state, reading = stepped.state, stepped.reading
            made += stepped.assessments
        assert (state, made) == run(one_by_one(*call.topics))


@settings(max_examples=60)
@given(st.lists(st.text("ab ", max_size=30), max_size=12), st.integers(1, 4))
def test_the_ends_of_a_text_and_what_is_left_out_are_the_whole_text(said: list[str], streams: int) -> None:
    analyses = words.Analyses(RULES)
    kept = None
    with small(EXCERPT_CHARS=40):
        for number, text in enumerate(said):
            kept = words.fold(kept, utterance(number, text), 1 if number < 6 else streams, analyses)
    text = " ".join(one for one in said if one)
    if kept is None:
        return
    share = 40 // (streams if len(said) > 6 else 1) // 2
    assert (kept.beginning + kept.end == text) if not kept.omitted else len(text) > 2 * share
    assert text.startswith(kept.beginning)
    assert text.endswith(kept.end)
    assert len(kept.beginning) + kept.omitted + len(kept.end) == len(text)
    assert max(len(kept.beginning), len(kept.end)) <= 20


@given(st.lists(st.one_of(st.text("ab ", min_size=1, max_size=9), st.integers(1, 99)), max_size=9), st.integers(1, 30))
def test_the_end_of_a_text_has_no_gap_and_counts_what_is_before_it(pieces: list[words.Piece], most: int) -> None:
    text, before = words.ending(pieces, most)
    total = sum(piece if isinstance(piece, int) else len(piece) for piece in pieces)
    assert len(text) <= most
    assert len(text) + before == total
    after_gap = "".join("|" if isinstance(piece, int) else piece for piece in pieces).rpartition("|")[2]
    assert after_gap.endswith(text)


# --- Bounds


def long_speech(count: int, said: Sequence[str] = LINES) -> list[Utterance]:
    """Finals of one stream with the times of their words."""
    made = []
    for number in range(count):
        one = utterance(number, said[number % len(said)] or "Yes.")
        times = tuple(Word(text, one.start_ms, one.end_ms, 0.9) for text in one.text.split())
        made.append(replace(one, words=times))
    return made


def test_a_call_of_ten_thousand_utterances_has_a_small_state_and_small_assessments() -> None:
    state, made = run([[event("call.initiated"), event("call.answered", 1)], long_speech(10_000)])
    assert state is not None
    assert len(encode(state)) < STATE_MAX_BYTES
    live = made[-1]
    assert len(encode(live)) < 40_000
    said = " ".join(one.text for one in long_speech(10_000))
    assert said.endswith(live.transcript)
    assert live.transcript_omitted + len(live.transcript) == len(said)
    state, made = run([[DEADLINE]], state)
    [final] = made
    assert len(encode(final)) < 120_000
    assert final.transcript.startswith(LINES[0])
    assert final.transcript.endswith(said[-20_000:])
    assert f"[…{final.transcript_omitted:,} characters left out…]" in final.transcript
    assert final.risk == last_final(run([[event("call.initiated"), DEADLINE], long_speech(64)])[1]).risk
    assert len(encode_packet("call", decode_assessed(encode(final)))) < 120_000


def test_a_flood_of_partials_without_finals_is_bounded() -> None:
    flood = [partial(number, "help", 5) for number in range(500)]
    state, _ = run([[event("call.initiated")], flood])
    assert state is not None
    assert len(state.utterances) == words.KEPT_PARTIALS
    assert state.utterances[-1] == flood[-1]


def test_a_late_final_of_a_partial_that_is_kept_counts() -> None:
    late = [partial(0, "he is", 5), *(utterance(number, "Hello.") for number in range(1, 50))]
    state, _ = run([[event("call.initiated")], late])
    _, made = run([[utterance(0, "He is not breathing.")]], state)
    assert "not_breathing" in made[-1].tags or any("breathing" in part.reason for part in made[-1].parts)


def test_streams_beyond_the_bound_are_ignored_and_the_call_is_shown_as_degraded() -> None:
    names = [f"s{number:03}" for number in range(words.STREAMS_MAX + 5)]
    spoken: list[Record] = [utterance(0, "There is a fire.", stream=name) for name in names]
    signals: list[Record] = [signal(0, SignalKind.START, stream=name) for name in names]
    state, made = run([[event("call.initiated")], spoken])
    assert state is not None
    assert made[-1].degraded == STREAMS_CUT
    assert (
        len({one.stream_id for one in state.utterances} | {one.stream_id for one in state.words}) == words.STREAMS_MAX
    )
    state, made = run([[event("call.initiated")], signals])
    assert state is not None
    assert made[-1].degraded == STREAMS_CUT
    assert len(state.signals) == words.STREAMS_MAX
    assert run([signals], state) == (state, [])
    ends: list[Record] = [speech_end(stream=name) for name in names]
    state, made = run([[event("call.initiated")], ends])
    assert state is not None
    assert len(state.transcripts_ended) == words.STREAMS_MAX


def test_many_streams_that_say_everything_share_the_room_of_one() -> None:
    spoken = [
        replace(one, stream_id=f"s{stream:02}", utterance_id=f"s{stream:02}:{number}")
        for stream in range(words.STREAMS_MAX)
        for number, one in enumerate(long_speech(200))
    ]
    state, _ = run([[event("call.initiated")], spoken])
    assert state is not None
    assert len(encode(state)) < STATE_MAX_BYTES


def test_an_utterance_of_a_megabyte_is_cut_and_the_call_is_shown_as_degraded() -> None:
    text = "There is a fire. " * 60_000
    huge = replace(utterance(0, text), words=tuple(Word("fire", 0, 1, None) for _ in range(60_000)))
    state, made = run([[event("call.initiated")], [huge]])
    assert state is not None
    assert made[-1].degraded == TEXT_CUT
    assert made[-1].risk.score > 0
    assert len(encode(state)) < STATE_MAX_BYTES
    assert run([[huge]], state) == (state, [])


def test_of_a_long_utterance_the_beginning_is_analysed_and_the_rest_is_kept() -> None:
    filler = "so I was telling my sister about the weather and "
    before, after = f"There is a fire. {filler * 30}", f"{filler * 200}he is not breathing"
    assert len(before) < words.ANALYSED_CHARS < len(before + after) < words.UTTERANCE_CHARS
    state, made = run([[event("call.initiated")], [utterance(0, before + after)]])
    assert state is not None
    assert made[-1].degraded == TEXT_CUT
    assert made[-1].transcript.endswith("he is not breathing")
    (kept,) = state.utterances
    assert kept.text == before + after
    assert [part.name for part in made[-1].parts if part.evidence] == ["fire"]


def test_what_half_a_minute_of_fast_speech_has_is_analysed_to_its_end() -> None:
    text = "so I was telling my sister about the weather and " * 40 + "he is not breathing"
    assert 1_900 < len(text) <= words.ANALYSED_CHARS
    _, made = run([[event("call.initiated")], [utterance(0, text)]])
    assert made[-1].degraded is None
    assert made[-1].risk.level is RiskLevel.CRITICAL


def test_no_more_than_a_bounded_part_of_any_text_is_analysed() -> None:
    analysed: list[int] = []
    tokenize = patterns.tokenize

    def counting(text: str) -> tuple[patterns.Token, ...]:
        analysed.append(len(text))
        return tokenize(text)

    long = [utterance(number, f"{number} " + "not " * 4_000) for number in range(10)]
    with patch("dispatchai.triage.rules.tokenize", counting):
        run([[event("call.initiated")], long])
    assert max(analysed) <= words.ANALYSED_CHARS
    assert sum(analysed) <= 2 * len(long) * words.ANALYSED_CHARS


def test_findings_of_words_that_were_folded_under_other_rules_are_kept_by_their_names() -> None:
    state, _ = run([[event("call.initiated")], long_speech(100)])
    assert state is not None
    gone = replace(state.words[0].findings[0], rule="of_an_older_file")
    older = replace(
        state, words=(replace(state.words[0], findings=(gone, *state.words[0].findings[1:]), facts=("gone",)),)
    )
    reading = read(older.utterances, RULES, words=older.words)
    assert weigh(reading, NO_AUDIO, RULES).risk.score > 0


def test_a_state_of_the_version_before_is_folded_at_the_next_utterance() -> None:
    said = long_speech(300)
    state, _ = run([[event("call.initiated")]])
    assert state is not None
    before = decode_as(TriageState, encode(replace(state, utterances=tuple(said[:-1]))))
    after, made = run([said[-1:]], before)
    direct, expected = run([said], state)
    assert after == direct
    assert made[-1] == expected[-1]


def test_a_live_text_ends_with_what_was_said_last_and_no_longer_than_the_bound() -> None:
    _, made = run([[event("call.initiated")], long_speech(400), [partial(400, "and then " * 400, 7)]])
    live = made[-1]
    assert live.kind is AssessmentKind.LIVE
    assert len(live.transcript) <= words.LIVE_CHARS
    assert len(live.partial) <= words.PARTIAL_CHARS + 2
    assert live.partial.startswith("… ")


@pytest.mark.parametrize("text", ["fire " * 3_000, "not " * 4_000, "a" * 16_000, "1 " * 8_000, "oh god " * 2_000])
def test_texts_that_match_everywhere_are_read(text: str) -> None:
    _, made = run([[event("call.initiated")], [utterance(0, text)]])
    assert len(encode(made[-1])) < 40_000
