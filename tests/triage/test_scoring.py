"""The conclusions of triage from callers' words, and their reasons."""

from __future__ import annotations

import dataclasses

import pytest

from dispatchai.records import AudioSummary, Category, RiskLevel, Service, Utterance, UtteranceKind, Word
from dispatchai.triage import LISTENING, Conclusion, Rules, conclude

RULES = Rules.load()

CARDIAC_ARREST = (
    "Hello. My husband has collapsed on the kitchen floor.",
    "He is not breathing and I can't feel a pulse. He is sixty two.",
    "We are at 14 Maple Street. I am starting chest compressions.",
)
KITCHEN_FIRE = (
    "Help! Help! My kitchen is on fire! There's smoke everywhere,",
    "the flames are up to the ceiling! We got out but... please hurry! 220 Oak Avenue!",
)
NOISE = (
    "My neighbour is playing music so loud again, third night in a row,",
    "I'm sick of it, send somebody to shut it down.",
)


def audio(distress: float) -> AudioSummary:
    return AudioSummary(distress, distress, distress, True, 10.0, 20.0, 0)


def call(*texts: str) -> tuple[Utterance, ...]:
    return tuple(
        Utterance("s1", f"u{n}", 0, UtteranceKind.FINAL, text, 1000 * n, 1000 * n + 900, None, (), "typed", 0, n)
        for n, text in enumerate(texts)
    )


def said(*texts: str, distress: float = 0.0) -> Conclusion:
    return conclude(call(*texts), audio(distress), RULES)


@pytest.mark.parametrize("hidden", ["\x1b[2J", "\x9b2J", "\x7f", "\u200b", "\u202e", "\u2028", "\x00"], ids=ascii)
def test_what_a_dispatcher_reads_has_no_character_that_is_not_to_be_seen(hidden: str) -> None:
    fire = said(f"There is a fire{hidden} at 42 Garden{hidden} Street.")
    assert fire.category is Category.FIRE
    assert "Street" in fire.summary
    nothing = said(f"Well{hidden} then")
    quotes = [quote.text for part in fire.parts for quote in part.evidence]
    assert quotes
    for text in (fire.summary, nothing.summary, *quotes):
        assert text.isprintable()


# --- The three callers of the demo


def test_a_calm_cardiac_arrest_ranks_above_a_panicked_kitchen_fire_above_an_angry_noise_complaint() -> None:
    arrest, fire, noise = said(*CARDIAC_ARREST), said(*KITCHEN_FIRE, distress=1.0), said(*NOISE, distress=1.0)
    assert arrest.risk.score > fire.risk.score > noise.risk.score
    assert arrest.risk.level is RiskLevel.CRITICAL
    assert fire.risk.level in {RiskLevel.CRITICAL, RiskLevel.HIGH}
    assert noise.risk.level is RiskLevel.LOW
    assert (arrest.category, fire.category, noise.category) == (Category.EMS, Category.FIRE, Category.POLICE)
    assert (arrest.emotion.label, fire.emotion.label, noise.emotion.label) == ("CALM", "HIGHLY_DISTRESSED", "ANGRY")


@pytest.mark.parametrize(
    ("clear", "heard"),
    [
        (CARDIAC_ARREST, ("my husbands collapsed on the kitchen floor hes not breeding and i cant feel a pulls",)),
        (CARDIAC_ARREST, ("You. Hello, my husband has collapsed.", "He's not.", "Breathing. I can't feel the pulse.")),
        (KITCHEN_FIRE, ("help help my kitchens on fire theres smoke every where the flames are up to the ceiling",)),
        (NOISE, ("my neighbors playing music so loud again third nite in a row im sick of it",)),
    ],
)
def test_errors_of_the_recogniser_change_neither_level_nor_category(
    clear: tuple[str, ...], heard: tuple[str, ...]
) -> None:
    assert said(*heard).risk.level is said(*clear).risk.level
    assert said(*heard).category is said(*clear).category


def test_the_summary_names_the_leading_finding_the_next_ones_and_the_address() -> None:
    assert said(*CARDIAC_ARREST).summary == "Cardiac arrest: not breathing, no pulse, collapsed. 14 Maple Street."
    assert said(*KITCHEN_FIRE).summary == "Fire in a building: spreading, smoke. 220 Oak Avenue."
    assert said(*NOISE).summary == "Noise complaint."


def test_the_example_of_the_telephony_guide() -> None:
    conclusion = said("Someone's been shot, we need help now...")
    assert conclusion.tags[:3] == ("ACTIVE_SHOOTER", "TRAUMA", "VIOLENCE")
    assert conclusion.category is Category.EMS
    assert conclusion.services == (Service.EMS, Service.POLICE)
    assert conclusion.risk.level is RiskLevel.CRITICAL


# --- Negation, idioms


@pytest.mark.parametrize(
    ("text", "tag", "present"),
    [
        ("He isn't breathing", "NOT_BREATHING", True),
        ("He is not really breathing", "NOT_BREATHING", True),
        ("I don't think he's breathing", "NOT_BREATHING", True),
        ("He is breathing", "NOT_BREATHING", False),
        ("He is not breathing hard anymore", "NOT_BREATHING", False),
        ("I can't breathe", "NOT_BREATHING", False),
        ("He is blue in the face and cold", "NOT_BREATHING", True),
        ("The man is wearing a blue shirt and the car is grey", "NOT_BREATHING", False),
        ("There is no fire", "FIRE", False),
        ("My house is not on fire", "FIRE", False),
        ("There isn't any sign of a fire", "FIRE", False),
        ("No the house is on fire", "FIRE", True),
        ("No, fire, the kitchen", "FIRE", True),
        ("They can't put out the fire", "FIRE", True),
        ("I can't believe there's a fire", "FIRE", True),
        ("Nobody is hurt", "INJURED", False),
        ("Nobody is helping him he is hurt", "INJURED", True),
        ("We can't stop the bleeding", "BLEEDING", True),
        ("He doesn't have a gun", "GUN", False),
        ("I don't think that he has a gun", "GUN", False),
        ("I don't know if he has a gun", "GUN", True),
        ("He won't drop the gun", "GUN", True),
        ("He had no gun but he has a knife", "KNIFE", True),
        ("Nobody has been shot", "ACTIVE_SHOOTER", False),
        ("My phone is dying", "MEDICAL", False),
        ("These shoes are killing me", "VIOLENCE", False),
        ("He is going to kill me", "VIOLENCE", True),
        ("I'm going to kill myself", "SUICIDAL", True),
        ("I want to keep myself busy", "SUICIDAL", False),
        ("He got a flu shot", "ACTIVE_SHOOTER", False),
        ("I hurt myself while cooking", "SUICIDAL", False),
        ("The fire department was here", "FIRE", False),
        ("The fire department was here and now the house is on fire", "FIRE", True),
    ],
)
def test_denials_and_idioms_are_no_findings_and_unclear_words_are(text: str, tag: str, present: bool) -> None:
    assert (tag in said(text).tags) is present


@pytest.mark.parametrize("word", ["court", "game", "movie", "range", "toy", "drill", "joke", "video"])
def test_no_single_word_silences_a_gun(word: str) -> None:
    assert "GUN" in said(f"We are at the {word} and he has a gun and he pointed it at the {word}").tags


# --- The score and its parts


def test_evidence_quotes_the_exact_words_with_their_own_times() -> None:
    text = "Um, he's NOT breathing."
    words = (Word("Um,", 0, 200, 0.9), Word("he's", 300, 500, 0.9), Word("NOT", 500, 700, 0.9))
    utterance = dataclasses.replace(call(text)[0], words=(*words, Word("breathing.", 700, 1300, None)))
    [evidence] = next(p for p in conclude([utterance], audio(0), RULES).parts if p.name == "not_breathing").evidence
    assert (evidence.text, evidence.utterance_id) == ("NOT breathing", "u0")
    assert (evidence.start_ms, evidence.end_ms) == (500, 1300)


def test_words_without_times_have_the_times_of_their_utterance() -> None:
    part = said("hello", "he is choking").parts[0]
    assert [(e.utterance_id, e.start_ms, e.end_ms) for e in part.evidence] == [("u1", 1000, 1900)]


def test_a_finding_across_a_pause_quotes_both_halves() -> None:
    part = next(p for p in said("He's not", "breathing at all").parts if p.name == "not_breathing")
    assert [(e.text, e.utterance_id) for e in part.evidence] == [("not", "u0"), ("breathing", "u1")]


def test_a_denial_does_not_reach_into_the_next_utterance() -> None:
    assert "FIRE" in said("No", "fire in the kitchen").tags


def test_a_caller_who_says_that_all_is_well_erases_nothing() -> None:
    before, after = said("He stabbed me"), said("He stabbed me", "Never mind, it's fine now")
    assert after.risk == before.risk
    assert set(before.tags) <= set(after.tags)
    assert [p.points for p in after.parts if p.name == "caller_reassures"] == [0.0]


def test_a_voice_by_itself_adds_little_and_makes_no_call_critical() -> None:
    calm, angry = said(*NOISE), said(*NOISE, distress=1.0)
    assert 0 < angry.risk.score - calm.risk.score <= 0.10
    assert angry.risk.level is RiskLevel.LOW


def test_a_score_above_one_is_cut_by_a_part_that_says_so() -> None:
    conclusion = said(
        "He shot people and stabbed a child, the house is on fire, it exploded, people are trapped,",
        "she is not breathing, unconscious, bleeding badly, drowning, choking, having a stroke and a seizure, help me",
    )
    assert conclusion.risk.score == 1.0
    assert conclusion.parts[-1].name == "ceiling"
    assert conclusion.parts[-1].points < 0


def test_before_the_first_word_nothing_is_known() -> None:
    for texts in ((), ("",), ("...",)):
        conclusion = said(*texts, distress=1.0)
        assert conclusion.risk.level is RiskLevel.UNKNOWN
        assert (conclusion.risk.score, conclusion.parts, conclusion.summary) == (0.0, (), LISTENING)
        assert conclusion.emotion.label == "UNKNOWN"


def test_words_without_a_finding_are_shown_so_that_somebody_listens() -> None:
    conclusion = said("hello can you hear me")
    assert (conclusion.risk.level, conclusion.category) == (RiskLevel.UNKNOWN, Category.UNKNOWN)
    assert [part.name for part in conclusion.parts] == ["unrecognised"]
    assert conclusion.summary == "Unclear: “hello can you hear me”."


# --- Services, what is missing, where


def test_several_services_are_named_if_several_are_needed() -> None:
    assert set(said("a car crashed into a house, the driver is trapped and bleeding").services) == set(Service)
    assert said("I lost my wallet").services == ()


def test_an_open_question_is_named_until_the_caller_answers_it() -> None:
    medical = said("My father has chest pain")
    assert medical.unknowns == ("location", "breathing", "consciousness")
    assert said("My father has chest pain", "he's awake and breathing", "9 Elm Road").unknowns == ()
    assert "weapons" in said("two men are fighting outside").unknowns
    assert "weapons" not in said("two men are fighting outside", "no weapons").unknowns
    assert "weapons" in said("two men are fighting outside", "I don't know if they have weapons").unknowns
    assert "people inside" in said("the house is on fire").unknowns
    assert "people inside" not in said("the house is on fire", "everyone is out").unknowns
    assert said("please").unknowns == ("location", "what happened")


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("we're at 14 Maple Street", "14 Maple Street"),
        ("it's two twenty oak avenue", "Two twenty oak avenue"),
        ("the address is 9 Martin Luther King Boulevard apartment 3", "9 Martin Luther King Boulevard"),
        ("I'm at the corner of Fifth and Main", "Fifth and Main"),
        ("on Elm Street and Oak Avenue", "Elm Street and Oak Avenue"),
        ("we're on highway 101", "Highway 101"),
        ("it's on Willow Lane", "Willow Lane"),
        ("we are behind the old library", "Behind the old library"),
        ("at 14 Elm Road, no, 40 Elm Road", "40 Elm Road"),
        ("near the park, it's 7 Hill Court", "7 Hill Court"),
    ],
)
def test_a_stated_place_is_understood_and_quoted(text: str, place: str) -> None:
    conclusion = said(f"there is a fire. {text}")
    assert conclusion.summary.endswith(f" {place}.")
    assert "location" not in conclusion.unknowns


def test_an_address_cut_in_two_by_a_pause_is_one_address() -> None:
    assert said("there is a fire at 14", "Maple Street").summary.endswith(" 14 Maple Street.")


@pytest.mark.parametrize(
    "text",
    [
        "there are two men in the street",
        "he is two blocks down the road",
        "she is on the way",
        "at 5 minutes past",
        "he was driving 80 miles an hour",
        "three cars on the street",
    ],
)
def test_a_number_near_a_street_is_no_address(text: str) -> None:
    assert "location" in said(text).unknowns
