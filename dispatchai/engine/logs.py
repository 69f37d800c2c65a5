"""The logger of what extends Faust's services: they log each step of their start and stop, as Faust's own do."""

from __future__ import annotations

import logging
from typing import Final

FAUST_LOG: Final = logging.getLogger("faust.dispatchai")
"""Below `faust`, so one level quiets both."""
