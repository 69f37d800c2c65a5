"""`python scripts/replay_call.py FILE.wav` is `dispatchai call FILE.wav`."""

import sys

from dispatchai.cli.main import main

main(["call", *sys.argv[1:]])
