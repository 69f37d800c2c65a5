"""Which names and addresses are this machine's own, judging by the text alone. No name is resolved."""

from __future__ import annotations

import ipaddress
from typing import Final

LOCAL_NAMES: Final = frozenset({"localhost", "localhost.localdomain"})


def is_loopback(host: str) -> bool:
    """Whether `host`, an address or a name, is this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host in LOCAL_NAMES
