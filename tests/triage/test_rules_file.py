"""A wrong rules file is refused with a message that says where and why; the shipped one is sound."""

from __future__ import annotations

import re
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
import yaml

from dispatchai.records import RiskLevel
from dispatchai.triage import Rules, RulesError
from dispatchai.triage.rules import DEFAULT_PATH
from evals.triage import BEGIN, END, PAGE, read_lines, report, run

RULE = {"kind": "fire", "points": 0.5, "adds": 0.1, "says": "x", "reason": "y", "any_of": ["some pattern"]}


def test_the_version_names_the_contents() -> None:
    assert Rules.load().version == f"2026.1+{sha256(DEFAULT_PATH.read_bytes()).hexdigest()[:8]}"


def test_the_levels_are_those_that_the_documents_promise() -> None:
    levels = dict(Rules.load().levels)
    assert levels == {RiskLevel.CRITICAL: 8000, RiskLevel.HIGH: 5500, RiskLevel.MEDIUM: 3000}


def test_no_known_line_is_rated_too_low() -> None:
    results = run(read_lines(), Rules.load())
    assert [result.line.say for result in results if result.missed and not result.line.unseen] == []


def test_the_table_in_the_documents_is_that_of_these_rules() -> None:
    rules = Rules.load()
    written = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0].strip()
    assert written == report(run(read_lines(), rules), rules), "run python -m evals.triage --write"


def test_words_that_yaml_may_read_as_booleans_stay_words(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(DEFAULT_PATH.read_text(encoding="utf-8").replace("[not, never, no,", "[not, never, no, off, yes,"))
    Rules.load(path)


def add_rule(**fields: object) -> Callable[[str], str]:
    body = {key: value for key, value in {**RULE, **fields}.items() if value is not None}
    return lambda text: text.replace("rules:\n", "rules:\n" + indented({"broken": body}), 1)


def indented(value: object) -> str:
    return "".join(f"  {line}\n" for line in yaml.safe_dump(value, default_flow_style=False).splitlines())


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (add_rule(any_of=["@nowhere"]), "rules: broken: any_of: item 1: @nowhere .* is no class"),
        (add_rule(any_of=["isn't here"]), "rules: broken: any_of: item 1: .*isn't.* could never match"),
        (add_rule(any_of=["fire ~9 house"]), "rules: broken: any_of: item 1: '~9' .* a gap is"),
        (add_rule(any_of=["fire ~2"]), "rules: broken: any_of: item 1: .* does not end in an element"),
        (add_rule(unless=["game"]), "rules: broken: unless: item 1: 'game' must be two or more words"),
        (add_rule(points=1.5), "rules: broken: points must be at most 1.0, found 1.5"),
        (add_rule(points=0.05), "rules: broken adds more than its points"),
        (add_rule(services={"ARMY": 1.0}), "rules: broken: services: 'ARMY' is no service"),
        (add_rule(any_of=None), "rules: broken needs either any_of"),
        (
            add_rule(any_of=None, when_all=["not_breathing"]),
            "rules: broken: when_all: item 1: 'not_breathing' is no rule above this one",
        ),
        (add_rule(colour="red"), "rules: broken: unknown field 'colour'"),
        (add_rule(says=None), "rules: broken: says is missing"),
        (add_rule(quiet="maybe"), "rules: broken: quiet must be true or false"),
        (lambda text: text.replace("HIGH: 0.55", "HIGH: 0.85"), "levels must fall"),
        (lambda text: text.replace("  points: 0.05\n", "  points: 0.30\n"), "voice: points must be at most 0.1"),
        (
            lambda text: text.replace("  no_pulse:\n", "  not_breathing:\n"),
            "rules: not_breathing is given twice, first in line",
        ),
        (
            lambda text: text.replace("answered_by: [place]", "answered_by: [gossip]"),
            "questions: location: answered_by: item 1: 'gossip'",
        ),
        (
            lambda text: text.replace("kinds: [fire]", "kinds: [flood]"),
            "questions: people inside: kinds: item 1: no rule is of kind",
        ),
        (lambda text: text.replace("mood: anger", "mood: hunger"), "cues: irritation: mood must be one of"),
        (lambda text: text + "\n: [", "no YAML"),
        (lambda text: "just words", "expected fields, found str 'just words'"),
    ],
)
def test_a_wrong_file_is_refused_with_its_place_and_reason(
    tmp_path: Path, change: Callable[[str], str], complaint: str
) -> None:
    path = tmp_path / "rules.yaml"
    before = DEFAULT_PATH.read_text(encoding="utf-8")
    path.write_text(change(before), encoding="utf-8")
    assert path.read_text(encoding="utf-8") != before
    with pytest.raises(RulesError, match=rf"{re.escape(str(path))}:\d+: {complaint}"):
        Rules.load(path)


def test_every_fault_of_the_entries_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    change = add_rule(points=1.5, colour="red", says=None)
    path.write_text(change(DEFAULT_PATH.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(RulesError) as raised:
        Rules.load(path)
    lines = path.read_text(encoding="utf-8").splitlines()
    faults = [
        re.fullmatch(rf"{re.escape(str(path))}:(\d+): rules: broken: (.*)", one)
        for one in f"{raised.value}".splitlines()
    ]
    assert [(lines[int(fault[1]) - 1].strip(), fault[2]) for fault in faults if fault] == [
        ("broken:", "says is missing"),
        ("colour: red", "unknown field 'colour': correct its name or remove it"),
        ("points: 1.5", "points must be at most 1.0, found 1.5"),
    ]


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RulesError, match=r"none\.yaml: cannot be read"):
        Rules.load(tmp_path / "none.yaml")
