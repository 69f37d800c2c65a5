"""The first triage: from the words and voice of a caller to a score that explains itself. Pure functions and data.

Nothing here knows of Kafka, the clock or the network: what is concluded is a function of what was said.
"""

from dispatchai.triage.errors import RulesError
from dispatchai.triage.rules import Rules
from dispatchai.triage.scoring import Conclusion, conclude
from dispatchai.triage.summary import LISTENING

__all__ = ["LISTENING", "Conclusion", "Rules", "RulesError", "conclude"]
