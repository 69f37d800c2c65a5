"""The telephone side: the gateway that the carrier calls, and the commands that are sent to it."""
