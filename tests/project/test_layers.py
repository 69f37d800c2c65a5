"""The import contracts of `pyproject.toml` speak of every module; `make lint` checks that the imports keep them."""

from __future__ import annotations

import tomllib
from graphlib import TopologicalSorter

import grimp

from tests.support.paths import ROOT

CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]


def test_every_room_has_its_layer() -> None:
    (layers,) = [contract["layers"] for contract in CONTRACTS if contract["type"] == "layers"]
    named = [room for layer in layers for room in layer.split(" | ")]
    package = ROOT / "dispatchai"
    rooms = {path.stem for path in package.glob("*.py")} | {path.parent.name for path in package.glob("*/__init__.py")}
    assert sorted(named) == sorted({"agents", *(f"dispatchai.{room}" for room in rooms - {"__init__"})})


def test_no_files_import_each_other_in_a_circle() -> None:
    graph = grimp.build_graph("dispatchai", "agents", exclude_type_checking_imports=False)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    TopologicalSorter(imports).prepare()  # raises CycleError, which names the circle


def test_no_room_is_a_heap() -> None:
    """The biggest folder holds less than a sixth of the program's lines."""
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in (ROOT / "dispatchai").rglob("*.py")}
    rooms: dict[str, int] = {}
    for path, count in lines.items():
        room = path.relative_to(ROOT / "dispatchai").parts[0]
        rooms[room] = rooms.get(room, 0) + count
    assert max(rooms.values()) < sum(lines.values()) / 6
