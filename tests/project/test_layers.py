"""The import contracts of `pyproject.toml` speak of every module; `make lint` checks that the imports keep them."""

from __future__ import annotations

import tomllib

from tests.support.paths import ROOT

CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]


def test_every_room_has_its_layer() -> None:
    (layers,) = [contract["layers"] for contract in CONTRACTS if contract["type"] == "layers"]
    named = [room for layer in layers for room in layer.split(" | ")]
    package = ROOT / "dispatchai"
    rooms = {path.stem for path in package.glob("*.py")} | {path.parent.name for path in package.glob("*/__init__.py")}
    assert sorted(named) == sorted({"agents", *(f"dispatchai.{room}" for room in rooms - {"__init__"})})
