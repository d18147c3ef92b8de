"""Where a cache is: its URL as a value.

Rule: pure; opens nothing.  The forms are Bazel's (``--remote_cache=grpc://host:port``) with
the instance name as the path, and Unix sockets as gRPC writes them.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from urllib.parse import parse_qs, unquote, urlsplit

from cas.errors import ConfigError

FORMS = (
    "grpc://HOST[:PORT][/INSTANCE], grpcs://…, http://…, https://…, "
    "unix:/PATH[?instance=NAME] or http+unix:/PATH[?instance=NAME]"
)

_PORTS = {"grpc": 8980, "grpcs": 443, "http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Remote:
    """`host` and `port`, or `socket`, an absolute path.  `http` False means gRPC."""

    http: bool
    tls: bool
    host: str
    port: int
    socket: str = ""
    instance: str = ""
    user: str = ""
    password: str = field(default="", repr=False)

    @property
    def authority(self) -> str:
        """host:port as a URL or a gRPC target has it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def target(self) -> str:
        """gRPC's name of the address."""
        return f"unix:{self.socket}" if self.socket else f"dns:///{self.authority}"

    @property
    def base(self) -> str:
        """What requests over HTTP begin with, the instance included; no slash at the end."""
        origin = "http://socket" if self.socket else self.origin
        return f"{origin}/{self.instance}" if self.instance else origin

    @property
    def origin(self) -> str:
        """Scheme, host and port as credential helpers are asked for them."""
        return f"{'https' if self.tls else 'http'}://{self.authority}"

    @property
    def local(self) -> bool:
        """Whether it is on this machine, as far as its name tells."""
        if self.socket or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        """The URL without its password."""
        if self.socket:
            query = f"?instance={self.instance}" if self.instance else ""
            return f"{'http+unix' if self.http else 'unix'}:{self.socket}{query}"
        scheme = ("http" if self.http else "grpc") + "s" * self.tls
        return f"{scheme}://{self.authority}" + (f"/{self.instance}" if self.instance else "")


def parse(url: str) -> Remote:
    """Reads a remote's URL; raises ConfigError naming it and the forms there are."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise _wrong(url, str(error)) from None
    scheme = parts.scheme
    if scheme in {"unix", "http+unix", "grpc+unix"}:
        query = parse_qs(parts.query)
        if parts.netloc or not parts.path.startswith("/") or query.keys() - {"instance"}:
            raise _wrong(url, "the socket's absolute path was expected after the colon")
        instance = query.get("instance", [""])[-1].strip("/")
        return Remote(scheme == "http+unix", False, "localhost", 0, unquote(parts.path), instance)
    if scheme not in _PORTS:
        said = f"scheme {scheme!r} is not known" if "://" in url else "it has no scheme"
        raise _wrong(url, said)
    if not parts.hostname:
        raise _wrong(url, "it names no host")
    if parts.query or parts.fragment:
        raise _wrong(url, "nothing was expected after the instance")
    return Remote(
        http=scheme.startswith("http"),
        tls=scheme.endswith("s"),
        host=parts.hostname,
        port=_PORTS[scheme] if port is None else port,
        instance=unquote(parts.path).strip("/"),
        user=unquote(parts.username or ""),
        password=unquote(parts.password or ""),
    )


def _wrong(url: str, why: str) -> ConfigError:
    return ConfigError(f"remote {url!r}: {why}; expected {FORMS}")
