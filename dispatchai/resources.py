"""Finds the data files that ship with the program: schemas, topics.yaml, rules, page, recordings.

In the wheel the top-level `schemas/` and `topics.yaml` are inside the package, under `_data`; in a checkout they are at
its root. No other module needs to know where the program is installed.
"""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def data_path(name: str) -> Path:
    """The path of the shipped file or folder `name`, such as ``schemas`` or ``topics.yaml``.

    Raises FileNotFoundError, naming both places, if the installation is broken.
    """
    places = (_PACKAGE / "_data" / name, _PACKAGE.parent / name)
    for place in places:
        if place.exists():
            return place
    raise FileNotFoundError(
        f"{name} is missing from the installation: looked at {places[0]} and {places[1]}. Reinstall the package."
    )
