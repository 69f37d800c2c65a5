"""A simulated carrier: acts as Telnyx over real HTTP and WebSockets on this machine, from a caller's WAV file.

For trying the whole road of a call without an account, and for tests. See `server.SimulatedCarrier`.
"""

from dispatchai.simulator.account import AccountError, SimulatedAccount
from dispatchai.simulator.call import CallReport, Progress, Stage, Timing
from dispatchai.simulator.command_handler import CommandReport
from dispatchai.simulator.faults import NO_FAULTS, Codec, FaultError, Faults, SignatureFault, TokenFault, catalogue
from dispatchai.simulator.media import StreamEnd, StreamReport
from dispatchai.simulator.messages import HangupCause, HangupSource, Leg
from dispatchai.simulator.recording import AudioFileError, CallerAudio, load
from dispatchai.simulator.server import PlacedCall, PortTakenError, SimulatedCarrier
from dispatchai.simulator.webhooks import WebhookPolicy

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
