"""The engine could be lifted out and used for any keyed stream: it knows no call, no carrier and no topic."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from dispatchai import engine
from dispatchai.kafka.topics import Topic

FILES = sorted(Path(engine.__file__).parent.glob("*.py"))
BELOW = ("dispatchai.engine", "dispatchai.kafka", "dispatchai.process")
FOREIGN = ("call_id", "caller", "carrier", "telnyx", "dispatchai-", "emergency", "triage", "transcript")


def names_and_strings(tree: ast.AST) -> Iterator[str]:
    """Identifiers and string constants, without docstrings."""
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        match node:
            case ast.Constant(value=str() as text) if id(node) not in prose:
                yield text
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name):
                yield name


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_it_imports_only_what_is_below_it(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        match node:
            case ast.ImportFrom(module=str() as module) if module.split(".")[0] in ("dispatchai", "agents"):
                assert module == "dispatchai" or module.startswith(BELOW), f"{file.name} imports {module}"
            case ast.Import(names=aliases):
                assert not any(alias.name.split(".")[0] in ("dispatchai", "agents") for alias in aliases)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_it_names_nothing_of_the_product(file: Path) -> None:
    for text in names_and_strings(ast.parse(file.read_text(encoding="utf-8"))):
        assert text not in set(Topic), f"{file.name} names the topic {text}"
        assert not any(word in text.lower() for word in FOREIGN), f"{file.name} says {text!r}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_private_parts_of_libraries_are_touched_in_two_files_only(file: Path) -> None:
    if file.name in ("aiokafka_internals.py", "faust_internals.py"):
        return
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            owner = node.value
            assert isinstance(owner, ast.Name), f"{file.name}:{node.lineno} touches {ast.unparse(node)}"
            assert owner.id in ("self", "cls", "os", "sys"), f"{file.name}:{node.lineno} touches {ast.unparse(node)}"
