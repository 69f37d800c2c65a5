"""How the rules of triage rate the labelled lines in `triage_lines.yaml`.

Decides what counts as acceptable, and prints the table; `python -m evals.triage --write` renews it in `docs/triage.md`.
The exit status is 1 if a known line is rated too low, which is never acceptable.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from dispatchai.records.values import AudioSummary, Category, RiskLevel, Utterance, UtteranceKind
from dispatchai.triage import Conclusion, Rules, conclude

LINES = Path(__file__).with_name("triage_lines.yaml")
PAGE = Path(__file__).parent.parent / "docs" / "triage.md"
BEGIN, END = "<!-- begin: python -m evals.triage --write -->", "<!-- end -->"

_ORDER = (RiskLevel.LOW, RiskLevel.UNKNOWN, RiskLevel.MEDIUM, RiskLevel.HIGH, RiskLevel.CRITICAL)
"""The order of the queue: what was not understood ranks above a low risk."""

_CALM = AudioSummary(
    distress_score=0.0,
    distress_max=0.0,
    distress_now=0.0,
    voiced=False,
    voiced_seconds=0.0,
    audio_seconds=0.0,
    missing_frames=0,
)


@dataclass(frozen=True, slots=True)
class Line:
    """A labelled line, with the conclusions that are acceptable."""

    say: str
    levels: frozenset[RiskLevel]
    category: frozenset[Category]
    tags: frozenset[str]
    never: frozenset[str]
    unseen: bool
    """Whether no rule was ever changed for it: such lines are nearest to the words of a new caller."""


@dataclass(frozen=True, slots=True)
class Result:
    """A line and its conclusion."""

    line: Line
    conclusion: Conclusion

    @property
    def level_ok(self) -> bool:
        """Whether the level is acceptable. A line that may be LOW may also be UNKNOWN."""
        level = self.conclusion.risk.level
        return level in self.line.levels or (level is RiskLevel.UNKNOWN and RiskLevel.LOW in self.line.levels)

    @property
    def missed(self) -> bool:
        """Whether the level is below all acceptable ones: the call would wait too long."""
        return _ORDER.index(self.conclusion.risk.level) < min(map(_ORDER.index, self.line.levels))

    @property
    def excessive(self) -> bool:
        """Whether the level is above all acceptable ones: the call would take the place of another."""
        return not self.level_ok and _ORDER.index(self.conclusion.risk.level) > max(map(_ORDER.index, self.line.levels))

    @property
    def emergency(self) -> bool:
        """Whether no level below HIGH is acceptable."""
        return min(map(_ORDER.index, self.line.levels)) >= _ORDER.index(RiskLevel.HIGH)

    @property
    def mild(self) -> bool:
        """Whether no level above MEDIUM is acceptable."""
        return max(map(_ORDER.index, self.line.levels)) <= _ORDER.index(RiskLevel.MEDIUM)

    @property
    def category_ok(self) -> bool:
        """Whether the leading category is acceptable."""
        return self.conclusion.category in self.line.category

    @property
    def tags_ok(self) -> bool:
        """Whether all required tags are there, and no forbidden one."""
        return self.line.tags <= set(self.conclusion.tags) and not self.line.never & set(self.conclusion.tags)

    @property
    def ok(self) -> bool:
        """Whether level, category and tags are all acceptable."""
        return self.level_ok and self.category_ok and self.tags_ok


def read_lines(path: Path = LINES) -> tuple[Line, ...]:
    """The labelled lines of the file `path`."""
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    return tuple(
        Line(
            say=entry["say"],
            levels=frozenset(map(RiskLevel, entry["levels"])),
            category=frozenset(map(Category, entry["category"])),
            tags=frozenset(entry.get("tags", ())),
            never=frozenset(entry.get("never", ())),
            unseen=entry.get("set", "known") == "unseen",
        )
        for entry in document["lines"]
    )


def utterances(say: str) -> tuple[Utterance, ...]:
    """The final utterances of a line, which " / " separates."""
    return tuple(
        Utterance(
            stream_id="line",
            utterance_id=f"line-{number}",
            revision=0,
            kind=UtteranceKind.FINAL,
            text=text,
            start_ms=number * 1000,
            end_ms=number * 1000 + 900,
            confidence=None,
            words=(),
            engine="typed",
            recognized_at=0,
            sequence=number,
        )
        for number, text in enumerate(say.split(" / "))
    )


def run(lines: Sequence[Line], rules: Rules) -> tuple[Result, ...]:
    """The conclusions of `rules` for each line, spoken in a calm voice."""
    return tuple(Result(line, conclude(utterances(line.say), _CALM, rules)) for line in lines)


def report(results: Sequence[Result], rules: Rules) -> str:
    """The tables in Markdown: shares of the known and the unseen lines, then each line that is not acceptable."""
    known = [result for result in results if not result.line.unseen]
    unseen = [result for result in results if result.line.unseen]

    def row(name: str, passes: Callable[[Result], bool], of: Callable[[Result], bool]) -> str:
        cells = []
        for chosen in ([result for result in group if of(result)] for group in (known, unseen)):
            good = sum(map(passes, chosen))
            cells.append(f"{good} of {len(chosen)} ({good / max(1, len(chosen)):.1%})")
        return f"| {name} | {' | '.join(cells)} |"

    def every(_: Result) -> bool:
        return True

    table = [
        f"Rules {rules.version}.",
        "",
        "| acceptable | known lines | unseen lines |",
        "|---|---|---|",
        row("level", lambda result: result.level_ok, every),
        row("leading category", lambda result: result.category_ok, every),
        row("tags", lambda result: result.tags_ok, every),
        row("all three", lambda result: result.ok, every),
        row("emergencies (HIGH and up) not rated too low", lambda result: not result.missed, lambda r: r.emergency),
        row("lines of no urgency (at most MEDIUM) not rated too high", lambda r: not r.excessive, lambda r: r.mild),
    ]
    wrong = [result for result in results if not result.ok]
    if wrong:
        table += ["", "| not acceptable | set | concluded |", "|---|---|---|"]
        table += [
            f"| {result.line.say} | {'unseen' if result.line.unseen else 'known'} "
            f"| {result.conclusion.risk.level} {result.conclusion.category} {', '.join(result.conclusion.tags)} |"
            for result in wrong
        ]
    return "\n".join(table)


def with_report(page: str, table: str) -> str:
    """`page` with `table` between its two marks."""
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{table}\n{END}{tail}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print or write the table. Returns 1 if a known line is rated too low, else 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the table into docs/triage.md")
    chosen = parser.parse_args(arguments)
    rules = Rules.load()
    results = run(read_lines(), rules)
    table = report(results, rules)
    if chosen.write:
        PAGE.write_text(with_report(PAGE.read_text(encoding="utf-8"), table), encoding="utf-8")
    else:
        sys.stdout.write(f"{table}\n")
    return 1 if any(result.missed and not result.line.unseen for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
