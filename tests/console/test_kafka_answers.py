"""After an outage of Kafka no record counts as missing until it can have come."""

from __future__ import annotations

from dispatchai.console.kafka_answers import PAUSE_S, SETTLE_S, KafkaAnswers

PROBE_S = 3.0


def probed(answers: KafkaAnswers, begin_s: float, end_s: float) -> float:
    """Answers every PROBE_S. Returns the time of the last one."""
    now_s = begin_s
    while now_s + PROBE_S <= end_s:
        answers.answered(now_s)
        now_s += PROBE_S
    answers.answered(now_s)
    return now_s


def test_records_are_current_once_kafka_has_answered_for_long_enough() -> None:
    answers = KafkaAnswers()
    assert not answers.records_are_current(1000.0), "Kafka was never asked"
    assert not answers.records_are_current(probed(answers, 1000.0, 1000.0 + SETTLE_S - PROBE_S))
    assert answers.records_are_current(probed(answers, 1000.0, 1000.0 + SETTLE_S + PROBE_S))


def test_an_answer_that_waits_and_one_that_fails_are_an_outage() -> None:
    for fails in (False, True):
        answers = KafkaAnswers()
        last_s = probed(answers, 1000.0, 1100.0)
        assert answers.records_are_current(last_s)
        assert not answers.records_are_current(last_s + PAUSE_S + 1.0), "a probe waits for its answer"
        if fails:
            answers.lost()
            assert not answers.records_are_current(last_s)
        back_s = last_s + PAUSE_S + 1.0
        assert not answers.records_are_current(probed(answers, back_s, back_s + SETTLE_S - PROBE_S))
        assert answers.records_are_current(probed(answers, back_s, back_s + SETTLE_S + PROBE_S))
