"""Kinds of option value: how each is read from text and from TOML, and written back.

Rule: pure; what a value *looks like*, never what it is for (that is `cas.config`'s table).
A reader raises ValueError and nothing else; `Kind.expected` completes the sentence
"… is not …".  Reading what `to_text` wrote gives the same value.
"""

from __future__ import annotations

import ipaddress
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Generic, TypeVar

from cas.digest import BY_NAME, Functions, functions
from cas.reapi import hosts
from cas.reapi.hosts import Host

T = TypeVar("T")
L = TypeVar("L", bound=str)

MAX_SIZE = 2**63 - 1
"""Sizes travel as int64 in every protocol that is served."""

UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}

MAX_SOCKET_PATH = 107
"""Bytes of sockaddr_un.sun_path on Linux, less its closing zero (unix(7))."""


@dataclass(frozen=True, slots=True)
class Kind(Generic[T]):
    """How one kind of value is written."""

    expected: str
    """What a right value is, after "is not"."""
    placeholder: str
    """What stands for the value in help: ``SIZE``."""
    from_text: Callable[[str], T]
    """Reads a flag's or a variable's text."""
    from_toml: Callable[[Any], T]
    """Reads a TOML value: stricter, since TOML has types."""
    to_text: Callable[[T], str]
    quoted: bool = True
    """Whether TOML writes it as a string."""
    bare: str | None = None
    """What a flag without a value means, where it may be without one."""


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """``host:port``; an IPv6 host is held without its brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """``unix:/path``."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


Address = TcpAddress | UnixAddress | None
"""Where to listen; None, written ``none``, is nowhere."""


def parse_size(text: str) -> int:
    """Bytes of ``512``, ``64KiB``, ``4 MiB``, ``10GiB`` or ``2TiB``; ValueError."""
    match = re.fullmatch(r"([0-9]{1,19})(?: ?(KiB|MiB|GiB|TiB))?", text)
    if match is None:
        raise ValueError(text)
    return int(match[1]) * UNITS.get(match[2], 1)


def format_size(number: int) -> str:
    """`number` bytes in the largest unit that is exact: ``4MiB``, ``4194305``."""
    for unit, factor in reversed(UNITS.items()):
        if number and number % factor == 0:
            return f"{number // factor}{unit}"
    return str(number)


def parse_address(text: str) -> Address:
    """``host:port``, ``[ipv6]:port``, ``unix:/absolute/path`` or ``none``; ValueError."""
    if text == "none":
        return None
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        # gRPC reads the address as a URI: these characters would name another file.
        if not re.fullmatch(r"/[^\s%?#\x00-\x1f]+", path):
            raise ValueError(text)
        if len(os.fsencode(path)) > MAX_SOCKET_PATH:
            raise ValueError(text)
        return UnixAddress(path)
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9A-Za-z._-]+)):([0-9]{1,5})", text)
    if match is None:
        raise ValueError(text)
    port = int(match[3])
    if port > 65_535:
        raise ValueError(text)
    host = str(ipaddress.IPv6Address(match[1])) if match[1] else match[2]
    return TcpAddress(host, port)


def format_address(address: Address) -> str:
    return "none" if address is None else str(address)


def whole(low: int, high: int | None = None) -> Kind[int]:
    """A whole number of at least `low` and at most `high`."""

    def check(number: int) -> int:
        if number < low or (high is not None and number > high):
            raise ValueError(number)
        return number

    def from_text(text: str) -> int:
        # int() alone would take "1_000", " 4 " and digits of other scripts.
        if not re.fullmatch(r"[0-9]{1,18}", text):
            raise ValueError(text)
        return check(int(text))

    bound = f"of at least {low}" if high is None else f"from {low} to {high}"
    return Kind(f"a whole number {bound}", "N", from_text, _typed(check, int), str, quoted=False)


def seconds(low: float, high: float) -> Kind[float]:
    """Seconds, whole or with a fraction."""

    def check(number: float) -> float:
        if not math.isfinite(number) or not low <= number <= high:
            raise ValueError(number)
        return float(number)

    def from_text(text: str) -> float:
        if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]+)?", text):
            raise ValueError(text)
        return check(float(text))

    def to_text(number: float) -> str:
        # repr is exact but may write an exponent, which from_text does not take.
        return str(int(number)) if number.is_integer() else f"{Decimal(repr(number)):f}"

    expected = f"seconds from {low:g} to {high:g}"
    return Kind(expected, "SECONDS", from_text, _typed(check, int, float), to_text, quoted=False)


def size(low: int, high: int = MAX_SIZE) -> Kind[int]:
    """A number of bytes."""

    def check(number: int) -> int:
        if not low <= number <= high:
            raise ValueError(number)
        return number

    def from_text(text: str) -> int:
        return check(parse_size(text))

    def from_toml(value: Any) -> int:
        return from_text(value) if isinstance(value, str) else _typed(check, int)(value)

    bound = f"from {format_size(low)}" + (f" to {format_size(high)}" if high < MAX_SIZE else "")
    expected = f"a size {bound}: bytes, or a number with KiB, MiB, GiB or TiB"
    return Kind(expected, "SIZE", from_text, from_toml, format_size)


def choice(*names: L) -> Kind[L]:
    """One of a few words."""

    words = {str(name): name for name in names}

    def from_text(text: str) -> L:
        if text not in words:
            raise ValueError(text)
        return words[text]

    return Kind(
        "one of " + ", ".join(names), "|".join(names), from_text, _typed(from_text, str), str
    )


def _path_from_text(text: str) -> Path:
    if not text or "\0" in text:
        raise ValueError(text)
    return Path(text)


def _switch_from_text(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError(text)
    return text == "true"


def _switch_to_text(value: bool) -> str:
    return "true" if value else "false"


def _typed(read: Callable[[Any], T], *types: type) -> Callable[[Any], T]:
    """`read`, for values of exactly these types: TOML's true is not the number 1."""

    def from_toml(value: Any) -> T:
        if type(value) not in types:
            raise ValueError(value)
        return read(value)

    return from_toml


PATH: Kind[Path] = Kind("a path", "PATH", _path_from_text, _typed(_path_from_text, str), str)


def _average_from_text(text: str) -> int:
    if text == "none":
        return 0
    number = parse_size(text)
    # REAPI: a client ignores a server that advertises anything else.
    if not 1 << 10 <= number <= 1 << 20 or number.bit_count() > 1:
        raise ValueError(text)
    return number


def _average_from_toml(value: Any) -> int:
    return _average_from_text(value if isinstance(value, str) else str(_typed(int, int)(value)))


CHUNK_SIZE: Kind[int] = Kind(
    "none, or a power of two from 1KiB to 1MiB",
    "SIZE|none",
    _average_from_text,
    _average_from_toml,
    lambda number: format_size(number) if number else "none",
)
"""0 for none."""


def _optional_path(text: str) -> Path | None:
    return None if text == "none" else _path_from_text(text)


OPTIONAL_PATH: Kind[Path | None] = Kind(
    "a path, or none",
    "PATH",
    _optional_path,
    _typed(_optional_path, str),
    lambda path: "none" if path is None else str(path),
)

ADDRESS: Kind[Address] = Kind(
    "an address: host:port, [ipv6]:port, unix:/absolute/path or none",
    "ADDR",
    parse_address,
    _typed(parse_address, str),
    format_address,
)


def _functions_from_text(text: str) -> Functions:
    # Spaces: people write lists with them.
    chosen = [BY_NAME.get(name.strip()) for name in text.split(",")]
    known = [function for function in chosen if function is not None]
    if len(set(known)) < len(chosen):
        raise ValueError(text)
    return functions(known)


def _functions_from_toml(value: Any) -> Functions:
    if type(value) is list and all(type(name) is str for name in value):
        return _functions_from_text(",".join(value))
    return _typed(_functions_from_text, str)(value)


FUNCTIONS: Kind[Functions] = Kind(
    f"a list of different digest functions: {', '.join(BY_NAME)}",
    "NAME,…",
    _functions_from_text,
    _functions_from_toml,
    lambda chosen: ",".join(function.name for function in chosen.all),
)


def _hosts_from_text(text: str) -> tuple[Host, ...]:
    return () if text == "none" else tuple(map(hosts.parse, text.split(",")))


def _hosts_from_toml(value: Any) -> tuple[Host, ...]:
    if type(value) is list and all(type(name) is str for name in value):
        return tuple(map(hosts.parse, value))
    return _typed(_hosts_from_text, str)(value)


HOSTS: Kind[tuple[Host, ...]] = Kind(
    "none, or a list of host, *.host or host:port",
    "HOST,…",
    _hosts_from_text,
    _hosts_from_toml,
    lambda allowed: ",".join(map(str, allowed)) or "none",
)


def _matching(pattern: str) -> Callable[[str], str]:
    """Reads ``none``, which is nothing, or what matches."""

    def from_text(text: str) -> str:
        if text == "none":
            return ""
        if not re.fullmatch(pattern, text):
            raise ValueError(text)
        return text

    return from_text


def _optional_text(pattern: str, expected: str, placeholder: str) -> Kind[str]:
    read = _matching(pattern)
    return Kind(expected, placeholder, read, _typed(read, str), lambda text: text or "none")


UPSTREAM = _optional_text(
    r"(?:(?:s3|gs|az)://[A-Za-z0-9][A-Za-z0-9._-]{1,62}(?:/[A-Za-z0-9._/-]*)?|file:///[^\s%?#]+"
    r"|grpcs?://[A-Za-z0-9.\[\]:_-]+(?:/[A-Za-z0-9._~/-]*)?"
    r"|unix:/[^\s%?#]+(?:\?instance=[A-Za-z0-9._~/-]+)?)",
    "none, or where an object store is: s3://bucket, gs://bucket, az://container, each perhaps "
    "with /prefix, or file:///directory; or another server: grpc://host:port, grpcs://host, each "
    "perhaps with /instance, or unix:/socket",
    "URL",
)

INSTANCE = _optional_text(
    r"/|[A-Za-z0-9._~-]+(?:/[A-Za-z0-9._~-]+)*",
    "none, or an instance's name, or / for the one without a name",
    "NAME",
)

HTTP_URL = _optional_text(
    r"https?://[A-Za-z0-9.\[\]:_-]+(?:/[^\s?#]*)?",
    "none, or a URL of http or https",
    "URL",
)

REDIS_URL = _optional_text(
    r"(?:rediss?://[^\s/]+(?:/[0-9]{1,3})?|unix:///[^\s?#]+)",
    "none, or redis://host:port/number, rediss://… or unix:///path",
    "URL",
)

WORD = _optional_text(r"[A-Za-z0-9._-]{1,64}", "none, or a word", "NAME")

SWITCH: Kind[bool] = Kind(
    "true or false",
    "true|false",
    _switch_from_text,
    _typed(bool, bool),
    _switch_to_text,
    quoted=False,
    bare="true",
)
