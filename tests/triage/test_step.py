"""The final assessment of a call follows from the records of its topics, not from how they were read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dispatchai.records import (
    Assessment,
    AssessmentKind,
    CallPacket,
    CallStatus,
    RiskLevel,
    Signal,
    SignalKind,
    TriageState,
    Utterance,
    UtteranceKind,
    decode_as,
    encode,
)
from dispatchai.triage.finality import is_complete, version_of
from dispatchai.triage.ranking import decode_assessed, encode_live, live_call, packet
from dispatchai.triage.step import step
from tests.support.recorded_call import (
    CARDIAC_ARREST,
    DEADLINE,
    EXPIRED,
    RULES,
    T0,
    Record,
    Recorded,
    S,
    event,
    partial,
    signal,
    speech_end,
    stream_signals,
    stream_speech,
    utterance,
    whole_call,
)

Batch = Sequence[Record]

few = settings(max_examples=30)
"""For whole calls: each example assesses a call some fifteen times."""


def run(batches: Sequence[Batch], before: TriageState | None = None) -> tuple[TriageState | None, list[Assessment]]:
    """Step through `batches`. Returns the state after them and all assessments on the way."""
    state = before
    made: list[Assessment] = []
    for batch in batches:
        stepped = step(state, batch, rules=RULES)
        state = stepped.state
        made.extend(stepped.assessments)
    return state, made


def one_by_one(*topics: Batch) -> list[Batch]:
    """Topic after topic, a batch for each record."""
    return [[record] for topic in topics for record in topic]


def last_final(made: Sequence[Assessment]) -> Assessment:
    """The final assessment without its time."""
    return replace([one for one in made if one.kind is AssessmentKind.FINAL][-1], as_of=0)


def kinds(made: Sequence[Assessment]) -> list[AssessmentKind]:
    return [one.kind for one in made]


@st.composite
def readings(draw: st.DrawFn, call: Recorded) -> list[Batch]:
    """Any way to read a call: any interleaving of its topics, cut into batches of one topic each."""
    left = [list(topic) for topic in call.topics]
    batches: list[Batch] = []
    while any(left):
        topic = draw(st.sampled_from([records for records in left if records]))
        size = draw(st.integers(1, len(topic)))
        batches.append(topic[:size])
        del topic[:size]
    return batches


@st.composite
def rereadings(draw: st.DrawFn, call: Recorded) -> list[Batch]:
    """Any way to read a call with crashes: now and then a topic is read again from any earlier offset."""
    at = [0] * len(call.topics)
    batches: list[Batch] = []
    crashes = draw(st.integers(0, 4))
    while any(position < len(topic) for position, topic in zip(at, call.topics, strict=True)):
        if crashes and draw(st.booleans()):
            crashes -= 1
            number = draw(st.integers(0, len(at) - 1))
            at[number] = draw(st.integers(0, at[number]))
        number = draw(st.sampled_from([n for n, topic in enumerate(call.topics) if at[n] < len(topic)]))
        end = draw(st.integers(at[number] + 1, len(call.topics[number])))
        batches.append(call.topics[number][at[number] : end])
        at[number] = end
    return batches


WHOLE = whole_call()
TWO_STREAMS = whole_call(streams=2)
UNHEARD_END = replace(WHOLE, transcripts=WHOLE.transcripts[:-2])
"""The last utterance is only a partial, and its stream's speech never ended."""


# --- However the topics are read


@pytest.mark.parametrize("call", [WHOLE, TWO_STREAMS], ids=["one stream", "two streams"])
@few
@given(data=st.data())
def test_the_first_final_assessment_is_the_same_however_a_call_is_read(call: Recorded, data: st.DataObject) -> None:
    expected = last_final(run(one_by_one(*call.topics))[1])
    _, made = run(data.draw(readings(call)))
    assert kinds(made).count(AssessmentKind.FINAL) == 1
    assert last_final(made) == expected
    assert expected.version == 1
    assert expected.complete


@few
@given(st.data())
def test_a_deadline_that_overtakes_the_speech_does_not_change_the_last_packet(data: st.DataObject) -> None:
    call = WHOLE.with_events(DEADLINE)
    expected = last_final(run(one_by_one(*call.topics))[1])
    _, made = run(data.draw(readings(call)))
    assert last_final(made) == expected
    assert (expected.version, expected.complete) == (1, True)


@few
@given(st.data())
def test_a_call_that_is_never_complete_has_the_same_packet_at_its_deadline_however_it_is_read(
    data: st.DataObject,
) -> None:
    call = UNHEARD_END.with_events(DEADLINE)
    expected = last_final(run(one_by_one(*call.topics))[1])
    assert last_final(run(data.draw(readings(call)))[1]) == expected
    assert (expected.version, expected.complete) == (0, False)


@pytest.mark.parametrize("call", [WHOLE, TWO_STREAMS], ids=["one stream", "two streams"])
@few
@given(data=st.data())
def test_reading_again_from_any_earlier_offset_makes_no_new_version(call: Recorded, data: st.DataObject) -> None:
    expected = last_final(run(one_by_one(*call.topics))[1])
    _, made = run(data.draw(rereadings(call)))
    assert kinds(made).count(AssessmentKind.FINAL) == 1
    assert last_final(made) == expected


@few
@given(st.permutations(WHOLE.events))
def test_the_order_of_the_webhooks_does_not_change_the_assessment(events: list[Record]) -> None:
    expected = replace(last_final(run(one_by_one(*WHOLE.topics))[1]), version=0)
    _, made = run(one_by_one(WHOLE.signals, WHOLE.transcripts, events))
    assert replace(last_final(made), version=0) == expected


@few
@given(st.data())
def test_nothing_is_live_after_the_final_assessment(data: st.DataObject) -> None:
    call = replace(
        WHOLE.with_events(event("call.cost", 31), event("streaming.started", 32), DEADLINE),
        signals=(*WHOLE.signals, *stream_signals("late", 40)),
    )
    _, made = run(data.draw(readings(call)))
    first_final = kinds(made).index(AssessmentKind.FINAL)
    assert AssessmentKind.LIVE not in kinds(made[first_final:])


# --- Versions


@st.composite
def mixed(draw: st.DrawFn, streams: Sequence[Sequence[Utterance]]) -> list[Utterance]:
    """The texts of `streams` in any order that keeps that of each stream."""
    left = [list(speech) for speech in streams]
    made: list[Utterance] = []
    while any(left):
        made.append(draw(st.sampled_from([speech for speech in left if speech])).pop(0))
    return made


@st.composite
def odd_calls(draw: st.DrawFn) -> Recorded:
    """A call whose records may come late or not at all: events in any order and after the deadline, streams that no
    event announced, texts of streams mixed, ends that are missing."""
    streams = draw(st.integers(0, 3))
    call = whole_call(streams=max(streams, 1))
    events = draw(st.permutations([one for one in call.events if draw(st.booleans()) or one.type == "call.initiated"]))
    late = [DEADLINE, event("call.cost", 61), event("streaming.started", 62), event("call.hangup", 20)]
    events += [one for one in late if draw(st.booleans())]
    transcripts = draw(mixed([stream_speech(f"s{number + 1}", CARDIAC_ARREST[number:]) for number in range(streams)]))
    return Recorded(
        tuple(events),
        call.signals[: draw(st.sampled_from([len(call.signals), len(call.signals) - 1]))] if streams else (),
        tuple(transcripts[: draw(st.sampled_from([len(transcripts), max(0, len(transcripts) - 1)]))]),
    )


@st.composite
def readings_with_crashes(draw: st.DrawFn, call: Recorded) -> list[Assessment]:
    """The assessments of a worker that crashes now and then and goes on from its last snapshot, reading each topic from
    the offset that the snapshot covers or from an earlier one."""
    at = [0] * len(call.topics)
    stored: tuple[bytes | None, list[int]] = (None, list(at))
    state: TriageState | None = None
    made: list[Assessment] = []
    crashes = draw(st.integers(0, 3))
    while any(position < len(topic) for position, topic in zip(at, call.topics, strict=True)):
        number = draw(st.sampled_from([n for n, topic in enumerate(call.topics) if at[n] < len(topic)]))
        end = draw(st.integers(at[number] + 1, len(call.topics[number])))
        state, assessments = run([call.topics[number][at[number] : end]], state)
        made += assessments
        at[number] = end
        if draw(st.booleans()):
            stored = (None if state is None else encode(state), list(at))
        if crashes and draw(st.booleans()):
            crashes -= 1
            state = None if stored[0] is None else decode_as(TriageState, stored[0])
            at = [draw(st.integers(0, position)) for position in stored[1]]
    return made


def packets(made: Sequence[Assessment]) -> list[CallPacket]:
    return [packet("call", one) for one in made if one.kind is AssessmentKind.FINAL]


@settings(max_examples=150)
@given(st.data())
def test_the_last_packet_and_its_version_follow_from_the_records_and_not_from_how_they_are_read(
    data: st.DataObject,
) -> None:
    call = data.draw(odd_calls())
    state, made = run(one_by_one(*call.topics))
    assert state is not None
    # Every call gets its deadline. Before it a call may seem complete and turn out not to be, depending on the order.
    assume(is_complete(state) or DEADLINE in call.events)
    expected = packets(made)[-1]
    assert packets(data.draw(readings_with_crashes(call)))[-1] == expected
    assert expected.version == version_of(state)


@settings(max_examples=150)
@given(st.data())
def test_versions_never_fall_and_rise_with_the_content_of_a_packet_except_between_drafts(data: st.DataObject) -> None:
    made = packets(run(data.draw(readings(data.draw(odd_calls()))))[1])
    for before, after in pairwise(made):
        assert before != after, "the same was written twice"
        assert after.version > before.version or (after.version == before.version and not after.complete)
    assert all(one.complete == bool(one.version % 2) for one in made)


@settings(max_examples=80)
@given(st.data())
def test_complete_packets_of_one_version_are_equal_in_all_runs(data: st.DataObject) -> None:
    call = data.draw(odd_calls())
    by_version: dict[int, CallPacket] = {}
    for _ in range(3):
        for one in packets(data.draw(readings_with_crashes(call))):
            if one.complete:
                assert by_version.setdefault(one.version, one) == one


def test_records_after_the_end_make_versions_above_the_first() -> None:
    state, made = run([*WHOLE.topics, [DEADLINE]])
    assert [one.version for one in packets(made)] == [1]
    state, made = run([[event("call.recording.saved", 62)]], state)
    assert made == [], "nothing that a packet says"
    state, made = run([[event("call.hangup", 29, hangup_cause="normal_clearing")]], state)
    assert [(one.version, one.duration_seconds) for one in packets(made)] == [(5, 29)]
    # A stream that no event announced: first a draft above the complete version, then the whole.
    state, made = run([stream_signals("s2", 40)], state)
    assert [(one.version, one.complete) for one in packets(made)] == [(8, False)]
    _, made = run([stream_speech("s2", ("I am back.",))], state)
    assert packets(made)[-1].version == 9
    assert packets(made)[-1].nlp.transcript.endswith("Garden Street. I am back.")


def test_the_packet_of_a_call_without_hangup_does_not_depend_on_when_it_was_recognised() -> None:
    call = replace(WHOLE.with_events(DEADLINE), events=(*WHOLE.events[:-1], DEADLINE))
    late = replace(call, transcripts=tuple(replace(one, recognized_at=T0 + 500 * S) for one in call.transcripts))
    [*_, expected], [*_, found] = (packets(run(one_by_one(*one.topics))[1]) for one in (call, late))
    assert expected == found
    assert expected.duration_seconds == 60


def test_streams_are_in_the_order_of_their_audio_whichever_was_recognised_first() -> None:
    first, second = stream_speech("s1", CARDIAC_ARREST[:1]), stream_speech("s2", CARDIAC_ARREST[1:])
    call = replace(TWO_STREAMS, transcripts=(*first[:1], *second, *first[1:]))
    straight = replace(TWO_STREAMS, transcripts=(*first, *second))
    turned = replace(TWO_STREAMS, transcripts=(*second, *first))
    transcripts = {last_final(run(one_by_one(*one.topics))[1]).transcript for one in (call, straight, turned)}
    assert transcripts == {" ".join(CARDIAC_ARREST)}


@few
@given(st.data())
def test_the_state_does_not_depend_on_which_stream_was_recognised_first(data: st.DataObject) -> None:
    streams = [stream_speech(name, CARDIAC_ARREST) for name in ("s2", "s1", "s3")]
    begun, _ = run([[event("call.initiated")]])
    assert run([data.draw(mixed(streams))], begun)[0] == run(streams, begun)[0]


def test_a_partial_that_is_left_at_the_end_of_a_streams_speech_does_not_count() -> None:
    broken = replace(UNHEARD_END, transcripts=(*UNHEARD_END.transcripts, speech_end()))
    assert last_final(run([*broken.topics])[1]).transcript == " ".join(CARDIAC_ARREST[:2])


@few
@given(st.data())
def test_the_reading_of_the_step_before_changes_only_the_cost(data: st.DataObject) -> None:
    batches = data.draw(readings(data.draw(odd_calls())))
    state, reading = None, None
    made: list[Assessment] = []
    for batch in batches:
        stepped = step(state, batch, rules=RULES, reading=reading)
        state, reading = stepped.state, stepped.reading
        made.extend(stepped.assessments)
    assert (state, made) == run(batches)


def test_the_reading_of_a_call_is_kept_until_its_packet() -> None:
    batches = one_by_one(*WHOLE.topics)
    state, reading = None, None
    for batch in batches[:-1]:
        stepped = step(state, batch, rules=RULES, reading=reading)
        assert stepped.reading is not None
        if reading is not None and isinstance(batch[0], Signal):
            assert stepped.reading is reading, "a signal of the voice changes no word"
        state, reading = stepped.state, stepped.reading
    last = step(state, batches[-1], rules=RULES, reading=reading)
    assert kinds(last.assessments) == [AssessmentKind.FINAL]
    assert last.reading is None


def test_the_reading_of_a_call_is_kept_after_a_draft() -> None:
    *before, last = WHOLE.with_events(DEADLINE).transcripts
    draft = step(None, [*WHOLE.with_events(DEADLINE).events, *WHOLE.signals, *before], rules=RULES)
    assert kinds(draft.assessments) == [AssessmentKind.FINAL]
    assert draft.reading is not None
    whole = step(draft.state, [last], rules=RULES, reading=draft.reading)
    assert kinds(whole.assessments) == [AssessmentKind.FINAL]
    assert whole.reading is None


@settings(max_examples=40)
@given(st.data())
def test_live_entries_are_encoded_as_by_the_codec(data: st.DataObject) -> None:
    for one in run(data.draw(readings(data.draw(odd_calls()))))[1]:
        value = encode(one)
        assert encode_live("call", decode_assessed(value)) == encode(live_call("call", one))


# --- When a call is final


def test_a_call_is_final_only_after_hangup_end_of_audio_and_end_of_speech() -> None:
    *events, hangup = WHOLE.events
    *signals, audio_end = WHOLE.signals
    *transcripts, transcript_end = WHOLE.transcripts
    state, made = run([events, signals, transcripts])
    assert set(kinds(made)) == {AssessmentKind.LIVE}
    for first, second, third in (
        (hangup, audio_end, transcript_end),
        (transcript_end, hangup, audio_end),
        (audio_end, transcript_end, hangup),
    ):
        _, made = run([[first], [second], [third]], state)
        assert kinds(made) == [AssessmentKind.LIVE, AssessmentKind.LIVE, AssessmentKind.FINAL]


@pytest.mark.parametrize("missing", ["audio", "transcript"])
def test_a_call_is_final_only_after_the_end_of_each_stream(missing: str) -> None:
    call = TWO_STREAMS
    if missing == "audio":
        call = replace(call, signals=call.signals[:-1])
    else:
        call = replace(call, transcripts=call.transcripts[:-1])
    assert AssessmentKind.FINAL not in kinds(run([*call.topics])[1])


def test_a_call_is_not_final_before_an_announced_stream_has_ended() -> None:
    call = replace(TWO_STREAMS, signals=stream_signals("s1", 2), transcripts=stream_speech("s1", CARDIAC_ARREST))
    state, made = run([*call.topics])
    assert AssessmentKind.FINAL not in kinds(made)
    _, made = run([stream_signals("s2", 6), [speech_end(stream="s2")]], state)
    assert kinds(made)[-1] is AssessmentKind.FINAL


def test_an_answered_call_without_a_frame_is_not_final_before_its_deadline() -> None:
    state, made = run([[event("call.initiated"), event("call.answered", 1), event("call.hangup", 2)]])
    assert kinds(made) == [AssessmentKind.LIVE]
    _, made = run([[DEADLINE]], state)
    assert kinds(made) == [AssessmentKind.FINAL]
    assert not made[0].complete


def test_a_caller_who_hangs_up_unanswered_is_final_at_once() -> None:
    _, made = run([[event("call.initiated")], [event("call.hangup", 4, hangup_cause="originator_cancel")]])
    assert kinds(made) == [AssessmentKind.LIVE, AssessmentKind.FINAL]
    final = made[-1]
    assert (final.version, final.complete, final.status) == (1, True, CallStatus.ENDED)
    assert (final.hangup_cause, final.transcript) == ("originator_cancel", "")
    assert final.risk.level is RiskLevel.UNKNOWN


def test_the_deadline_makes_a_draft_and_the_remaining_text_the_first_version() -> None:
    call = UNHEARD_END
    state, made = run([*call.topics, [DEADLINE]])
    first = made[-1]
    assert (first.kind, first.version, first.complete) == (AssessmentKind.FINAL, 0, False)
    _, made = run([WHOLE.transcripts[-2:]], state)
    assert [(one.kind, one.version, one.complete) for one in made] == [(AssessmentKind.FINAL, 1, True)]
    assert made[0].transcript == " ".join(CARDIAC_ARREST)


def test_a_partial_counts_in_the_packet_if_no_final_came() -> None:
    _, made = run([*UNHEARD_END.topics, [DEADLINE]])
    live, final = made[-2], made[-1]
    assert (live.transcript, live.partial) == (" ".join(CARDIAC_ARREST[:2]), "We are")
    assert (final.transcript, final.partial) == (f"{' '.join(CARDIAC_ARREST[:2])} We are", "")


# --- The end of the state


def test_expiry_deletes_the_state() -> None:
    state, made = run([*WHOLE.topics, [EXPIRED]])
    assert state is None
    assert made[-1].kind is AssessmentKind.EXPIRED
    assert kinds(made).count(AssessmentKind.FINAL) == 1


@pytest.mark.parametrize("together", [True, False])
def test_a_call_that_expires_at_its_deadline_still_gets_its_packet(together: bool) -> None:
    timers = [DEADLINE, event(EXPIRED.type, 60)]
    batches: list[Batch] = [timers] if together else [[timer] for timer in timers]
    state, made = run([[event("call.initiated"), event("call.answered", 1)], *batches])
    assert state is None
    assert kinds(made) == [AssessmentKind.LIVE, AssessmentKind.FINAL, AssessmentKind.EXPIRED]


def test_records_after_the_expiry_in_its_batch_do_not_change_the_packet() -> None:
    late = event("call.hangup", 3601, hangup_cause="too_late")
    ringing = [event("call.initiated"), event("call.answered", 1)]
    _, made = run([[*ringing, DEADLINE, EXPIRED, late]])
    assert kinds(made) == [AssessmentKind.FINAL, AssessmentKind.EXPIRED]
    assert made[0].hangup_cause is None


@pytest.mark.parametrize("again", [[DEADLINE], [DEADLINE, EXPIRED], [EXPIRED]])
def test_timers_that_are_read_again_after_the_expiry_make_neither_packet_nor_live_entry(again: Batch) -> None:
    state, _ = run([*WHOLE.topics, [DEADLINE], [EXPIRED]])
    for batches in ([again], one_by_one(again)):
        assert run(batches, state) == (None, [])


@pytest.mark.parametrize("late", [signal(5), utterance(1, "Help."), speech_end()])
def test_an_orphaned_state_is_deleted_when_its_call_expires_again(late: Record) -> None:
    left, _ = run([*WHOLE.topics, [DEADLINE], [EXPIRED], [late]])
    assert left is not None
    assert run([[DEADLINE]], left) == (left, [])
    assert run([[EXPIRED]], left) == (None, [])
    assert run([[DEADLINE, EXPIRED]], left) == (None, [])


def test_a_stray_event_after_the_expiry_makes_neither_packet_nor_live_entry() -> None:
    state, _ = run([*WHOLE.topics, [EXPIRED]])
    state, made = run([[event("call.recording.saved", 4000)], [event(DEADLINE.type, 18_400)]], state)
    assert made == []
    assert run([[event(EXPIRED.type, 18_400)]], state)[0] is None
    assert run([[event("call.initiated")]], state)[1] != [], "a call of which an odd event was read first"


@few
@given(st.permutations([*WHOLE.events[:-1], event("call.speak.ended", 5), event("streaming.stopped", 29)]))
def test_late_events_do_not_revive_a_call_that_is_over(late: list[Record]) -> None:
    state, _ = run([[event("call.hangup", 30, hangup_cause="normal_clearing")], WHOLE.signals, WHOLE.transcripts])
    after, made = run(one_by_one(late), state)
    assert after is not None
    assert after.call is not None
    assert after.call.status is CallStatus.ENDED
    assert AssessmentKind.LIVE not in kinds(made)
    assert {one.status for one in made} <= {CallStatus.ENDED}


# --- What was said


def test_a_final_replaces_its_partial_for_good() -> None:
    first = partial(0, "he is", 5)
    state, made = run([[event("call.initiated")], [first]])
    assert (made[-1].transcript, made[-1].partial) == ("", "he is")
    state, made = run([[utterance(0, "He is not breathing.")]], state)
    assert (made[-1].transcript, made[-1].partial) == ("He is not breathing.", "")
    _, made = run([[partial(0, "he is not", 9)], [first], [utterance(0, "He is well.")]], state)
    assert made == []


def test_the_later_revision_of_a_partial_counts() -> None:
    state, _ = run([[event("call.initiated")], [partial(0, "he is not", 9)]])
    _, made = run([[partial(0, "he is", 5)]], state)
    assert made == []
    _, made = run([[partial(0, "", 10)]], state)
    assert made[-1].partial == "", "what was taken back is still shown"


def test_a_stream_with_text_only_comes_after_those_with_audio() -> None:
    # The times of each stream begin at zero, so they do not order two streams.
    one = [utterance(0, "One.", stream="z"), utterance(5, "Two.", stream="z")]
    other = [utterance(1, "Three.", stream="a"), utterance(2, "Four.", stream="a")]
    late = utterance(2, "And a half.", stream="z")
    _, made = run([[event("call.initiated")], stream_signals("z", 1), one, other, [late]])
    assert made[-1].transcript == "One. And a half. Two. Three. Four."


def test_the_voice_of_a_call_is_that_of_its_last_signal() -> None:
    state, made = run([[event("call.initiated")], [signal(0, SignalKind.START), signal(50)]])
    assert made[-1].audio.audio_seconds == 1.0
    assert made[-1].audio.voiced
    again, made = run([[signal(50)], [signal(12)]], state)
    assert (again, made) == (state, [])
    _, made = run([[signal(51, SignalKind.END)]], state)
    assert not made[-1].audio.voiced


def test_records_before_the_first_event_of_their_call_are_kept_and_make_no_assessment() -> None:
    state, made = run([WHOLE.signals, WHOLE.transcripts])
    assert made == []
    assert state is not None
    assert len([one for one in state.utterances if one.kind is UtteranceKind.FINAL]) == len(CARDIAC_ARREST)
    _, made = run([[event("call.initiated")]], state)
    assert made[0].transcript == " ".join(CARDIAC_ARREST)


def test_a_record_that_changes_nothing_makes_no_assessment() -> None:
    state, _ = run([*WHOLE.topics])
    for record in (record for topic in WHOLE.topics for record in topic):
        assert run([[record]], state) == (state, [])
