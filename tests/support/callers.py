"""The number that simulated callers dial. The recordings that speak are those of the demo."""

from typing import Final

from dispatchai.cli.demo import CALLERS

CALLED_NUMBER: Final = "+15550100911"

__all__ = ["CALLED_NUMBER", "CALLERS"]
