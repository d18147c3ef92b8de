"""Which origins may be asked, and at which addresses.

Rule: pure.  What is not allowed by name is not asked, whatever led there; what has no public
address is not asked either, unless the operator says so, whatever its name: names are for
anybody to point anywhere.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import NamedTuple
from urllib.parse import urlsplit

_NAT64 = IPv6Network("64:ff9b::/96")

PORTS = {"http": 80, "https": 443}

_HOST = re.compile(
    r"(?P<any>\*\.)?(?P<name>[a-z0-9_.-]+|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{1,5}))?"
)


def bracketed(host: str) -> str:
    """A host as it stands in URLs and headers."""
    return f"[{host}]" if ":" in host else host


class Host(NamedTuple):
    """What is allowed."""

    name: str
    """In lower case; an IPv6 address without its brackets."""
    below: bool
    """Whether all names below it are meant, and it itself is not."""
    port: int | None
    """None: that of the scheme."""

    def __str__(self) -> str:
        port = "" if self.port is None else f":{self.port}"
        return f"{'*.' * self.below}{bracketed(self.name)}{port}"


class Location(NamedTuple):
    """Where a URL leads."""

    scheme: str
    host: str
    port: int
    target: str
    """Path and query, as they are asked for."""


def parse(text: str) -> Host:
    """Reads ``host``, ``*.host`` or ``host:port``; raises ValueError."""
    match = _HOST.fullmatch(text.strip().lower())
    if match is None or (match["port"] and not 0 < int(match["port"]) < 65_536):
        raise ValueError(text)
    name = match["name"].strip("[]")
    if ":" in name:
        name = str(IPv6Address(name))
    return Host(name, bool(match["any"]), int(match["port"]) if match["port"] else None)


def locate(url: str) -> Location | None:
    """Where an HTTP or HTTPS URL leads; None for anything else, and for what is malformed."""
    try:
        parts = urlsplit(url)
        scheme, host, port = parts.scheme, parts.hostname, parts.port
    except ValueError:
        return None
    if scheme not in PORTS or not host or parts.username is not None:
        return None
    # Nothing that could end a line of the request.
    if not url.isascii() or not url.isprintable() or " " in url:
        return None
    target = f"{parts.path or '/'}{f'?{parts.query}' if parts.query else ''}"
    return Location(scheme, host.rstrip("."), port or PORTS[scheme], target)


def is_allowed(location: Location, hosts: tuple[Host, ...]) -> bool:
    """Whether one of the hosts is this one."""
    for host in hosts:
        port = PORTS[location.scheme] if host.port is None else host.port
        if port == location.port and (
            location.host.endswith(f".{host.name}") if host.below else location.host == host.name
        ):
            return True
    return False


def is_public(address: str) -> bool:
    """Whether an IP address is anybody's to ask: not of this machine, its networks, or many."""
    found = ip_address(address.partition("%")[0])
    if isinstance(found, IPv6Address):
        # A gateway may lead to the IPv4 address within.
        inner = IPv4Address(int(found) & 0xFFFFFFFF) if found in _NAT64 else None
        found = found.ipv4_mapped or found.sixtofour or inner or found
    return found.is_global and not found.is_multicast
