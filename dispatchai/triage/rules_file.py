"""The rules file as models of its entries. The comment at the top of `rules.yaml` explains the fields.

Checks each entry by itself. `rules` checks what entries say of each other, such as names and word classes.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final, Self

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, model_validator

from dispatchai.records.values import Category, Service
from dispatchai.yaml_model import YamlModel

MAX_VOICE_POINTS: Final = 0.1
"""Most that the voice may add. Loudness onset is a weak signal and must not decide between levels of danger."""


class Mood(StrEnum):
    """The feeling that a cue in the caller's words shows."""

    FEAR = "fear"
    ANGER = "anger"
    RELIEF = "relief"


def _service(name: str) -> str:
    if name not in {*Service, Category.OTHER}:
        raise ValueError(f"{name!r} is no service: use {', '.join(Service)} or OTHER")
    return name


def _voice_points(points: float) -> float:
    if points > MAX_VOICE_POINTS:
        raise ValueError(f"must be at most {MAX_VOICE_POINTS}, found {points}: a voice alone decides nothing")
    return points


Text = Annotated[str, StringConstraints(min_length=1)]
Texts = tuple[Text, ...]
Points = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(gt=0, le=1)]
ServiceName = Annotated[Category, BeforeValidator(_service)]


class Levels(YamlModel):
    """The score from which each level holds. Below MEDIUM there is LOW."""

    CRITICAL: Points
    HIGH: Points
    MEDIUM: Points

    @model_validator(mode="after")
    def _fall(self) -> Self:
        if not self.CRITICAL > self.HIGH > self.MEDIUM > 0:
            raise ValueError("must fall from CRITICAL to HIGH to MEDIUM, and stay above 0")
        return self


class UnrecognisedEntry(YamlModel):
    """Stands for the words of a caller in which no rule found anything."""

    points: Points
    says: Text
    reason: Text


class VoiceEntry(YamlModel):
    """The part of the voice."""

    points: Annotated[Points, AfterValidator(_voice_points)]
    reason: Text


class RuleEntry(YamlModel):
    """A finding."""

    tags: Texts = ()
    kind: Text
    services: dict[ServiceName, Weight] = Field(default_factory=dict)
    points: Points
    adds: Points
    says: Text
    reason: Text
    quiet: bool = False
    any_of: Texts | None = None
    when_all: Texts | None = None
    unless: Texts = ()

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if (self.any_of is None) == (self.when_all is None):
            raise ValueError("needs either any_of (patterns) or when_all (names of rules above it)")
        if self.unless and self.any_of is None:
            raise ValueError("has unless without any_of: remove unless")
        if self.adds > self.points:
            raise ValueError("adds more than its points: then it would lower the score when it leads the call")
        return self


class FactEntry(YamlModel):
    """Something that the caller states, which answers questions."""

    any_of: Texts = ()
    unless: Texts = ()


class CueEntry(YamlModel):
    """Words that show the caller's state."""

    mood: Mood
    weight: Points
    any_of: Texts = ()


class QuestionEntry(YamlModel):
    """A question that a dispatcher needs answered."""

    kinds: Texts = ()
    answered_by: Texts = ()


class PlacesEntry(YamlModel):
    """Words by which places are recognised; each text holds words with spaces between them."""

    plain_roads: Texts
    short_roads: Texts
    numbered_roads: Texts
    landmarks: Texts
    never_in_names: Texts


class RulesFile(YamlModel):
    """The whole file."""

    version: Text
    levels: Levels
    unrecognised: UnrecognisedEntry
    voice: VoiceEntry
    classes: dict[str, Texts]
    rules: dict[str, RuleEntry]
    facts: dict[str, FactEntry]
    cues: dict[str, CueEntry]
    questions: dict[str, QuestionEntry]
    places: PlacesEntry
