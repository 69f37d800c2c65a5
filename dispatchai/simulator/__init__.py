"""A simulated carrier: acts as Telnyx over real HTTP and WebSockets on this machine, with a WAV file as the caller.

For tests, and for trying a whole call without an account. See `server.SimulatedCarrier`. It writes Telnyx's JSON by
itself (`messages`) and shares no code with `dispatchai.telnyx`, which reads it: each checks the other.
"""

from dispatchai.simulator.account import AccountError, SimulatedAccount
from dispatchai.simulator.call import CallReport, Progress, Stage, Timing
from dispatchai.simulator.command_handler import CommandReport
from dispatchai.simulator.errors import SimulatorError
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
    "SimulatorError",
    "Stage",
    "StreamEnd",
    "StreamReport",
    "Timing",
    "TokenFault",
    "WebhookPolicy",
    "catalogue",
    "load",
]
