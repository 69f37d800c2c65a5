"""Where the data files that ship with the program are: schemas, topics.yaml, rules, page, recordings.

In the wheel the top-level `schemas/` and `topics.yaml` lie inside the package, under `_data`; in a checkout
they lie at its root. Nothing else in the program asks where it is installed.
"""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def data_path(name: str) -> Path:
    """Path of the shipped file or folder `name` (such as ``schemas`` or ``topics.yaml``).

    Raises FileNotFoundError naming both places when neither holds it: the installation is broken.
    """
    places = (_PACKAGE / "_data" / name, _PACKAGE.parent / name)
    for place in places:
        if place.exists():
            return place
    raise FileNotFoundError(
        f"{name} is missing from the installation: looked at {places[0]} and {places[1]}. Reinstall the package."
    )
