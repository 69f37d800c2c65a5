"""Reads a YAML file into a pydantic model, and reports each fault with the file, the line and the field.

Decides what YAML may be written and how a fault is worded. The model decides which fields exist and which values they
take.

The dialect is YAML 1.2's core schema without the traps of 1.1: only `true` and `false` are booleans, so `no`, `on`,
`12:30` and `2026-01-01` are texts. A name that is given twice, an alias (`*name`) and a tag (`!name`) are faults.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Generic, TypeAlias, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails, PydanticKnownError

LEVELS_MAX: Final = 32
"""Lists and mappings within each other. No model has a dozen, and reading takes some of Python's stack for each."""

DIGITS_MAX: Final = 20
"""Digits of a whole number: enough for every 64-bit one. Python itself refuses some thousands."""

M = TypeVar("M", bound="YamlModel")

Loc: TypeAlias = Sequence[str | int]
"""Where a value is: names of mappings and, counted from 0, items of lists, from the root of the file."""

_NULL, _BOOL, _INT, _FLOAT, _STR = (f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str"))

_KEY: Final = "[key]"
"""How pydantic ends the location of a mapping's name, as opposed to the value of that name."""


class YamlFileError(ValueError):
    """The file cannot be used. The message has a line for each fault: ``FILE:LINE: NAME: NAME: what to write``."""


class YamlModel(BaseModel):
    """Base class of what is read from a YAML file: no conversions between types, no unknown fields, no changes.

    A validator states a fault as ``ValueError("must be ...")``, to be read after the field's name. One of a mapping's
    name, or of the whole file, states a whole sentence.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


@dataclass(frozen=True, slots=True)
class YamlFile(Generic[M]):
    """A file that was read. `source` is its name in errors."""

    content: M
    source: Path | str
    _root: yaml.Node

    def error(self, loc: Loc, fault: str) -> YamlFileError:
        """The error for a fault that the model cannot see, such as a reference to a name that is not there.

        The message has the line of the value at `loc`, or of the nearest mapping around it, then the names of `loc`,
        then `fault`.
        """
        return YamlFileError(_message(self.source, _line_of(self._root, loc), _named(loc), fault))


def read_yaml(raw: bytes, model: type[M], source: Path | str) -> YamlFile[M]:
    """Read the YAML text `raw` as a `model`. `source` names the file in errors.

    Raises YamlFileError, with every fault of the content that the model sees.
    """
    try:
        root = yaml.compose(raw, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark is not None else 1
        raise YamlFileError(_message(source, line, [], f"no YAML: {error.problem}")) from error
    except yaml.reader.ReaderError as error:
        line = raw[: error.position].count(b"\n") + 1
        raise YamlFileError(_message(source, line, [], f"no YAML: {error.reason}")) from error
    if root is None:
        raise YamlFileError(_message(source, 1, [], f"expected fields, found {described(None)}"))
    try:
        plain = json.dumps(_plain(root, ()))
    except _FaultError as fault:
        raise YamlFileError(_message(source, fault.line, _named(fault.loc), str(fault))) from None
    try:
        # As JSON, for in strict mode pydantic takes an enum, a tuple or a set from JSON but not from Python's values.
        content = model.model_validate_json(plain)
    except ValidationError as error:
        faults = sorted(_explained(root, details) for details in error.errors(include_url=False))
        raise YamlFileError("\n".join(_message(source, *fault) for fault in faults)) from error
    return YamlFile(content, source, root)


def must_be_fields(value: object) -> object:
    """`value`, if it has fields. To be a BeforeValidator of a union of models, whose own complaint is another's."""
    if not isinstance(value, dict):
        raise PydanticKnownError("model_type", {"class_name": "one of the union"})
    return value


def described(value: object) -> str:
    """`value` of a file in an error: its type and what was written."""
    return "nothing" if value is None else f"{type(value).__name__} {value!r}"


# -- YAML


class _Loader(yaml.SafeLoader):
    """Composes nodes, and refuses aliases: each value then has one line, and no value contains itself."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 - a field of PyYAML's class
    _level = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """The next node, with those in it."""
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "an alias is not supported: write the value again", mark)
        self._level += 1
        if self._level > LEVELS_MAX:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, f"more than {LEVELS_MAX} levels within each other", mark)
        try:
            return super().compose_node(parent, index)
        finally:
            self._level -= 1


_Loader.add_implicit_resolver(_NULL, re.compile(r"(?:~|null|Null|NULL|)\Z"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver(_BOOL, re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z"), list("tTfF"))
_Loader.add_implicit_resolver(_INT, re.compile(r"[-+]?[0-9]+\Z"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    _FLOAT, re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?\Z"), list("-+.0123456789")
)


class _FaultError(Exception):
    """A fault that YAML allows and this dialect does not."""

    def __init__(self, node: yaml.Node, loc: Loc, fault: str) -> None:
        super().__init__(fault)
        self.line = node.start_mark.line + 1
        self.loc = loc


def _plain(node: yaml.Node, loc: tuple[str | int, ...]) -> Any:
    """The value of `node` in JSON's types. Raises _FaultError."""
    match node:
        case yaml.MappingNode():
            return _plain_mapping(node, loc)
        case yaml.SequenceNode():
            return [_plain(item, (*loc, index)) for index, item in enumerate(node.value)]
        case yaml.ScalarNode(tag=tag, value=text):
            if tag == _STR:
                return text
            if tag == _NULL:
                return None
            if tag == _BOOL:
                return text.lower() == "true"
            if tag == _INT:
                if len(text) > DIGITS_MAX:
                    raise _FaultError(node, loc, f"a whole number has at most {DIGITS_MAX} digits")
                return int(text)
            if tag == _FLOAT:
                return float(text)
    raise _FaultError(node, loc, f"the tag {node.tag} is not supported")


def _plain_mapping(node: yaml.MappingNode, loc: tuple[str | int, ...]) -> dict[str, Any]:
    lines: dict[str, int] = {}
    values: dict[str, Any] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise _FaultError(key, loc, "a name must be a text")
        if key.tag != _STR:
            raise _FaultError(key, loc, f"a name must be a text: write {key.value} in quotes")
        name: str = key.value
        if name in lines:
            raise _FaultError(key, loc, f"{name} is given twice, first in line {lines[name]}")
        lines[name] = key.start_mark.line + 1
        values[name] = _plain(value, (*loc, name))
    return values


def _steps(root: yaml.Node, loc: Loc) -> Iterator[tuple[str | int, yaml.Node, yaml.Node]]:
    """Each part of `loc` that is in the file, the node that stands for its line, and the node of its value.

    Parts that pydantic puts in for a member of a union are in no file, and are left out.
    """
    node = root
    for part in loc:
        match node:
            case yaml.MappingNode():
                found = next(((key, value) for key, value in node.value if key.value == part), None)
            case yaml.SequenceNode() if isinstance(part, int) and part < len(node.value):
                found = (node.value[part], node.value[part])
            case _:
                found = None
        if found is not None:
            place, node = found
            yield part, place, node


def _line_of(root: yaml.Node, loc: Loc) -> int:
    """The line of the value at `loc`: that of its name or, where it is missing, of the name of what it belongs in."""
    place = root
    for _, place, _ in _steps(root, loc):  # noqa: B007 - the last one
        pass
    return int(place.start_mark.line) + 1


# -- wording


def _message(source: Path | str, line: int, names: Sequence[str], fault: str) -> str:
    return f"{source}:{line}: {': '.join([*names, fault])}"


def _named(loc: Loc) -> list[str]:
    return [f"item {part + 1}" if isinstance(part, int) else part for part in loc]


def _explained(root: yaml.Node, error: ErrorDetails) -> tuple[int, list[str], str]:
    """One fault that pydantic found: its line, the names that lead to it, and what is wrong."""
    raw_loc, value, context = error["loc"], error["input"], error.get("ctx", {})
    loc = [part for part, _, _ in _steps(root, raw_loc)]
    line, names = _line_of(root, loc), _named(loc)
    if raw_loc and raw_loc[-1] == _KEY:
        return line, names[:-1], _fault(error)
    match error["type"]:
        case "missing":
            return line, names, f"{raw_loc[-1]} is missing"
        case "extra_forbidden":
            return line, names[:-1], f"unknown field {names[-1]!r}: correct its name or remove it"
        case "model_type":
            return line, names, f"expected fields, found {described(value)}"
        case "union_tag_not_found":
            return line, names, f"{_plainly(context['discriminator'])} is missing"
        case "union_tag_invalid":
            name = _plainly(context["discriminator"])
            fault = f"{name} must be one of {_plainly(context['expected_tags'])}, not {value[name]!r}"
            return _line_of(root, [*loc, name]), names, fault
    if not names:
        return line, [], _fault(error)
    return line, names[:-1], f"{names[-1]} {_fault(error)}"


def _fault(error: ErrorDetails) -> str:
    """What is wrong with one value, to be read after its name."""
    value, context = error["input"], error.get("ctx", {})
    found = described(value)
    match error["type"]:
        case "string_type":
            hint = "" if value is None or isinstance(value, list | dict) else ": write it in quotes"
            return f"must be a text, found {found}{hint}"
        case "string_too_short":
            return "must not be empty"
        case "int_type" | "int_from_float":
            return f"must be a whole number, found {found}"
        case "float_type":
            return f"must be a number, found {found}"
        case "bool_type":
            return f"must be true or false, found {found}"
        case "dict_type":
            return f"must hold names with their values, found {found}"
        case "list_type" | "tuple_type" | "set_type" | "frozen_set_type":
            return f"must be a list, found {found}"
        case "enum" | "literal_error":
            return f"must be one of {_plainly(context['expected']).replace(' or ', ', ')}, not {value!r}"
        case "greater_than_equal" if isinstance(value, int):
            return f"must be a whole number from {context['ge']} up, found {value!r}"
        case "greater_than_equal":
            return f"must be at least {context['ge']}, found {value!r}"
        case "greater_than":
            return f"must be above {context['gt']}, found {value!r}"
        case "less_than_equal":
            return f"must be at most {context['le']}, found {value!r}"
        case "less_than":
            return f"must be below {context['lt']}, found {value!r}"
        case "value_error":
            return str(context["error"])
        case _:
            return f"is not valid: {error['msg']}"


def _plainly(choices: str) -> str:
    """pydantic's list of values without its quotes."""
    return choices.replace("'", "")
