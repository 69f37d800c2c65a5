"""A YAML file becomes a model, or each of its faults is named with its line, its place and what to write."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, StringConstraints

from dispatchai.yaml_model import YamlFile, YamlFileError, YamlModel, must_be_fields, read_yaml


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


class Square(YamlModel):
    shape: Literal["square"]
    side: int


class Circle(YamlModel):
    shape: Literal["circle"]
    radius: Annotated[float, Field(gt=0, le=10)]


def _even(number: int) -> int:
    if number % 2:
        raise ValueError(f"must be even, not {number}")
    return number


def _short(name: str) -> str:
    if len(name) > 4:
        raise ValueError(f"{name!r} is a long name")
    return name


class Item(YamlModel):
    text: Annotated[str, StringConstraints(min_length=1)] = "?"
    colours: tuple[Colour, ...] = ()
    nested: tuple[tuple[int, ...], ...] = ()
    count: Annotated[int, Field(ge=1)] = 1
    even: Annotated[int, AfterValidator(_even)] = 0
    share: float = 0.0
    flag: bool = False


class Example(YamlModel):
    version: str
    items: Annotated[dict[Annotated[str, AfterValidator(_short)], Item], Field(default_factory=dict)]
    shapes: tuple[Annotated[Square | Circle, Discriminator("shape"), BeforeValidator(must_be_fields)], ...] = ()


def read(text: str) -> YamlFile[Example]:
    return read_yaml(text.encode(), Example, "example.yaml")


def faults(text: str) -> list[str]:
    with pytest.raises(YamlFileError) as caught:
        read(text)
    return str(caught.value).splitlines()


def test_a_file_becomes_its_model() -> None:
    content = read(
        """
        version: "1"
        items:
          a: {text: hello, colours: [red, blue], nested: [[1, 2], []], share: 1, flag: true}
        shapes:
          - shape: circle
            radius: 0.5
        """
    ).content
    assert content.items["a"] == Item(
        text="hello", colours=(Colour.RED, Colour.BLUE), nested=((1, 2), ()), share=1.0, flag=True
    )
    assert content.shapes == (Circle(shape="circle", radius=0.5),)


@pytest.mark.parametrize("word", ["no", "yes", "on", "off", "12:30", "2026-01-01", "1_000", ".inf", "0x1f"])
def test_words_that_yaml_1_1_would_convert_are_texts(word: str) -> None:
    assert read(f"version: {word}").content.version == word


def test_a_number_with_a_leading_zero_is_decimal() -> None:
    assert read("version: v\nitems:\n  a: {count: 010}").content.items["a"].count == 10


@pytest.mark.parametrize(
    ("field", "complaint"),
    [
        ("text: 30", "text must be a text, found int 30: write it in quotes"),
        ("text: true", "text must be a text, found bool True: write it in quotes"),
        ("text:", "text must be a text, found nothing"),
        ("text: [a]", "text must be a text, found list ['a']"),
        ("text: ''", "text must not be empty"),
        ("count: '1'", "count must be a whole number, found str '1'"),
        ("count: 1.5", "count must be a whole number, found float 1.5"),
        ("count: true", "count must be a whole number, found bool True"),
        ("count: 0", "count must be a whole number from 1 up, found 0"),
        ("even: 3", "even must be even, not 3"),
        ("share: '1'", "share must be a number, found str '1'"),
        ("flag: 'true'", "flag must be true or false, found str 'true'"),
        ("flag: no", "flag must be true or false, found str 'no'"),
        ("colours: red", "colours must be a list, found str 'red'"),
        ("colours: [red, green]", "colours: item 2 must be one of red, blue, not 'green'"),
        ("nested: [[1], [2, x]]", "nested: item 2: item 2 must be a whole number, found str 'x'"),
        ("hue: 1", "unknown field 'hue': correct its name or remove it"),
    ],
)
def test_a_wrong_field_is_named_with_its_line_and_what_it_must_be(field: str, complaint: str) -> None:
    assert faults(f"version: v\nitems:\n  a:\n    {field}\n") == [f"example.yaml:4: items: a: {complaint}"]


def test_an_item_of_a_list_has_its_own_line() -> None:
    text = "version: v\nitems:\n  a:\n    nested:\n      - [1]\n      - - 2\n        - x\n"
    assert faults(text) == ["example.yaml:7: items: a: nested: item 2: item 2 must be a whole number, found str 'x'"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("items: {}\n", "example.yaml:1: version is missing"),
        ("version: v\nshapes:\n  - shape: square\n", "example.yaml:3: shapes: item 1: side is missing"),
        ("version: v\nshapes:\n  - side: 1\n", "example.yaml:3: shapes: item 1: shape is missing"),
    ],
)
def test_a_missing_field_is_named_with_the_line_of_what_it_belongs_in(text: str, complaint: str) -> None:
    assert faults(text) == [complaint]


def test_a_missing_field_of_a_named_mapping_has_the_line_of_the_name() -> None:
    class Outer(YamlModel):
        squares: dict[str, Square]

    with pytest.raises(YamlFileError) as caught:
        read_yaml(b"squares:\n  first:\n\n    shape: square\n", Outer, "example.yaml")
    assert str(caught.value) == "example.yaml:2: squares: first: side is missing"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "example.yaml:1: expected fields, found nothing"),
        ("# nothing yet\n", "example.yaml:1: expected fields, found nothing"),
        ("[]", "example.yaml:1: expected fields, found list []"),
        ("version: v\nitems: []", "example.yaml:2: items must hold names with their values, found list []"),
        ("version: v\nitems:\n  a: 5", "example.yaml:3: items: a: expected fields, found int 5"),
        ("version: v\nitems:\n  longer: {}", "example.yaml:3: items: 'longer' is a long name"),
        ("version: v\nshapes:\n  - 5", "example.yaml:3: shapes: item 1: expected fields, found int 5"),
        (
            "version: v\nshapes:\n  -\n    shape: line",
            "example.yaml:4: shapes: item 1: shape must be one of square, circle, not 'line'",
        ),
        (
            "version: v\nshapes:\n  - shape: circle\n    radius: 0",
            "example.yaml:4: shapes: item 1: radius must be above 0.0, found 0",
        ),
        (
            "version: v\nshapes:\n  - shape: circle\n    radius: 11",
            "example.yaml:4: shapes: item 1: radius must be at most 10.0, found 11",
        ),
    ],
)
def test_a_wrong_shape_is_named_with_its_line(text: str, complaint: str) -> None:
    assert faults(text) == [complaint]


def test_every_fault_is_named_in_the_order_of_the_lines() -> None:
    text = "items:\n  b: {count: 0}\n  a:\n    flag: maybe\nextra: 1\n"
    assert [fault.split(": ", 1)[0] for fault in faults(text)] == [
        "example.yaml:1",
        "example.yaml:2",
        "example.yaml:4",
        "example.yaml:5",
    ]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("version: v\nversion: w\n", "example.yaml:2: version is given twice, first in line 1"),
        (
            "version: v\nitems:\n  a: {text: x}\n  b: {}\n  a: {}\n",
            "example.yaml:5: items: a is given twice, first in line 3",
        ),
        ("version: v\n1: x\n", "example.yaml:2: a name must be a text: write 1 in quotes"),
        ("version: v\n[a]: x\n", "example.yaml:2: a name must be a text"),
        ("version: &v v\nitems: *v\n", "example.yaml:2: no YAML: an alias is not supported: write the value again"),
        ("version: !secret v\n", "example.yaml:1: version: the tag !secret is not supported"),
        ("version: v\nitems: [\n", "example.yaml:3: no YAML: "),
        ("version: v\n\titems: {}\n", "example.yaml:2: no YAML: "),
        ("version: v\n---\nversion: w\n", "example.yaml:2: no YAML: "),
        ("version: v\nitems: \x00\n", "example.yaml:2: no YAML: "),
    ],
)
def test_what_is_no_yaml_or_ambiguous_is_refused_with_its_line(text: str, complaint: str) -> None:
    assert faults(text)[0].startswith(complaint)


def test_what_is_not_utf_8_is_refused_with_its_line() -> None:
    with pytest.raises(YamlFileError, match=r"^example\.yaml:2: no YAML: "):
        read_yaml(b"version: v\nitems: \xff\xfe\n", Example, "example.yaml")


def test_a_fault_that_only_the_caller_sees_has_its_line_too() -> None:
    file = read("version: v\nitems:\n  a:\n    nested:\n      - [1]\n")
    assert str(file.error(("items", "a", "nested", 0), "too few")) == (
        "example.yaml:5: items: a: nested: item 1: too few"
    )
    assert str(file.error(("items", "a", "colours"), "must be set")) == "example.yaml:3: items: a: colours: must be set"


def test_the_source_may_be_a_path(tmp_path: Path) -> None:
    path = tmp_path / "example.yaml"
    with pytest.raises(YamlFileError) as caught:
        read_yaml(b"[]", Example, path)
    assert str(caught.value).startswith(f"{path}:1: ")
