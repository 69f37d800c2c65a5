"""The first triage: from the words and voice of a caller to a score that explains itself. Pure functions and data.

Nothing here knows of Kafka, the clock or the network: what is concluded is a function of what was said.
"""

from dispatchai.triage.explain import LISTENING
from dispatchai.triage.rules import Conclusion, Rules, RulesError, conclude

__all__ = ["LISTENING", "Conclusion", "Rules", "RulesError", "conclude"]
