"""Triage: from the words and voice of a caller to a score that explains itself. Pure functions and data.

Nothing here knows Kafka, the clock or the network: conclusions are a function of what the caller said.
"""

from dispatchai.triage.errors import RulesError
from dispatchai.triage.rules import Rules
from dispatchai.triage.scoring import Conclusion, conclude
from dispatchai.triage.summary import LISTENING

__all__ = ["LISTENING", "Conclusion", "Rules", "RulesError", "conclude"]
