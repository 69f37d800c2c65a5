"""Where the project's files are, for tests and measurements that read them."""

from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
"""The checkout."""

DOCS: Final = ROOT / "docs"
