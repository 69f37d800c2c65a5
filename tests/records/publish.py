"""Publishes changed schemas: copies each into `schemas/history/` under the next number, with a golden record.

    python -m tests.records.publish

Run it after changing a file in `schemas/`. A published version never changes, because topics contain records of it.
Only a version that no release contained may be withdrawn, by deleting its two files before running this again.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from dispatchai.records import encode
from tests.records.examples import RECORD_NAMES, example, record_class
from tests.records.schemas import current_path, history_paths, load, version_of, without_docs

GOLDEN = Path(__file__).parent / "golden"


def golden_path(schema: Path) -> Path:
    """The golden record of a published schema: written once, by the version that published it."""
    return GOLDEN / f"{schema.stem}.bin"


def publish(name: str) -> Path | None:
    """Publish the record `name` if it changed. Returns the new file in the history."""
    current, published = current_path(name), history_paths(name)
    if published and without_docs(load(published[-1])) == without_docs(load(current)):
        return None
    number = version_of(published[-1]) + 1 if published else 1
    target = current.parent / "history" / f"{name}-{number}.avsc"
    target.parent.mkdir(exist_ok=True)
    shutil.copyfile(current, target)
    golden_path(target).parent.mkdir(exist_ok=True)
    golden_path(target).write_bytes(encode(example(record_class(name))))
    return target


def main() -> None:
    for name in RECORD_NAMES:
        target = publish(name)
        print(f"{name}: {'unchanged' if target is None else f'published as {target.stem}'}")


if __name__ == "__main__":
    main()
