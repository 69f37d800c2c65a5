"""Which requests a server for people and monitoring takes: those that no page of another site has sent.

Decides by the headers Host, Origin and Sec-Fetch-Site, for every route of an application, those that do not exist
included. There is no login here: a browser that may reach the server would otherwise read it for any site that is open
in it, by a name that this site makes resolve to the server's address (DNS rebinding).

Sources: Fetch Metadata Request Headers (W3C), 2.1; RFC 9110, 7.2; RFC 6454, 7.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Set
from typing import Final

import orjson
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware
from yarl import URL

SETTING: Final = "CONSOLE_HOSTS"
"""The setting that names further hosts. The answers to refused requests name it."""

_HOST: Final = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?")
_LOCALHOST: Final = "localhost"
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


def origin_check(names: Set[str]) -> Middleware:
    """A middleware that answers 403 with a JSON error to the requests of other sites.

    `names` are the host names and addresses, in lower case and without ports, under which the server is reached besides
    `localhost`, the loopback addresses and the address at which the request arrived.
    """

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if (error := _error(request, names)) is not None:
            code, message = error
            body = orjson.dumps({"error": {"code": code, "message": message}})
            return web.Response(body=body, status=403, content_type="application/json", charset="utf-8")
        return await handler(request)

    return check


def _error(request: web.Request, names: Set[str]) -> tuple[str, str] | None:
    """Why the request is refused, as code and message, or None."""
    # Not `request.host`, which is this machine's name where the header is missing.
    hosts = request.headers.getall(hdrs.HOST, [])
    host = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
    if host is None or not _is_own(name := host["name"].strip("[]").lower(), request, names):
        return "host", f"this server is not reached under that name; {SETTING} lists further names and addresses"
    origin = request.headers.get(hdrs.ORIGIN)
    if origin is not None and not _is_own_origin(origin, name, host["port"], request, names):
        return "origin", f"only this server's own page may ask; {SETTING} lists the names under which it is reached"
    match request.headers.get("Sec-Fetch-Site"):
        case None | "same-origin" | "none":
            return None
        case "same-site" if origin is not None:
            return None
        case _ if _opens_the_page(request):
            return None
        case _:
            return "cross_site", "a page of another site has sent this request"


def _is_own(name: str, request: web.Request, names: Set[str]) -> bool:
    return name in names or _is_of_this_machine(name, request)


def _is_of_this_machine(name: str, request: web.Request) -> bool:
    """Whether every machine has this name, or the request has arrived at this address."""
    if name == _LOCALHOST:
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    return address.is_loopback or address == _arrived_at(request)


def _arrived_at(request: web.Request) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address of this machine at which the request arrived."""
    at = None if request.transport is None else request.transport.get_extra_info("sockname")
    if not isinstance(at, tuple):
        return None
    address = ipaddress.ip_address(at[0])
    return address.ipv4_mapped or address if isinstance(address, ipaddress.IPv6Address) else address


def _is_own_origin(origin: str, name: str, port: str | None, request: web.Request, names: Set[str]) -> bool:
    """Whether a page of `origin` is this server's, which was asked as `name` and `port`.

    The port counts: behind another one of the same machine is another server.
    """
    try:
        url = URL(origin)
    except ValueError:
        return False
    if url.host is None:
        return False
    own, default_port = url.host.lower(), _DEFAULT_PORTS.get(url.scheme)
    if own == name:
        return url.port == (default_port if port is None else int(port))
    # Behind a proxy the Host header may be the upstream's. The page then has a configured name, and the proxy's port.
    return own in names and not _is_of_this_machine(own, request) and url.port == default_port is not None


def _opens_the_page(request: web.Request) -> bool:
    """Whether somebody follows a link to the page, in a tab of its own. The linking site cannot read it."""
    headers = request.headers
    return (
        request.method == hdrs.METH_GET
        and request.path == "/"
        and headers.get("Sec-Fetch-Mode") == "navigate"
        and headers.get("Sec-Fetch-Dest") == "document"
    )
