"""A simulated carrier: acts as Telnyx over real HTTP and WebSockets on this machine, from a caller's WAV file.

For trying the whole road of a call without an account, and for tests. See `server.SimulatedCarrier`.
"""

from dispatchai.telephony.carrier.account import AccountError, SimulatedAccount
from dispatchai.telephony.carrier.audio import AudioFileError, CallerAudio, load
from dispatchai.telephony.carrier.call import CallReport, Progress, Stage, Timing
from dispatchai.telephony.carrier.desk import CommandReport
from dispatchai.telephony.carrier.faults import (
    NO_FAULTS,
    Codec,
    FaultError,
    Faults,
    SignatureFault,
    TokenFault,
    catalogue,
)
from dispatchai.telephony.carrier.media import StreamEnd, StreamReport
from dispatchai.telephony.carrier.messages import HangupCause, HangupSource, Leg
from dispatchai.telephony.carrier.server import PlacedCall, PortTakenError, SimulatedCarrier
from dispatchai.telephony.carrier.webhooks import WebhookPolicy

__all__ = [
    "NO_FAULTS",
    "AccountError",
    "AudioFileError",
    "CallReport",
    "CallerAudio",
    "Codec",
    "CommandReport",
    "FaultError",
    "Faults",
    "HangupCause",
    "HangupSource",
    "Leg",
    "PlacedCall",
    "PortTakenError",
    "Progress",
    "SignatureFault",
    "SimulatedAccount",
    "SimulatedCarrier",
    "Stage",
    "StreamEnd",
    "StreamReport",
    "Timing",
    "TokenFault",
    "WebhookPolicy",
    "catalogue",
    "load",
]
