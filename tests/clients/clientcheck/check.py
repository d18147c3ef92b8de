"""What a check is given and what it gives back. Every client's module builds on this and on
nothing beside it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .process import Clock
from .tools import Tools


@dataclass(frozen=True)
class Bench:
    """Where one check works: a scratch directory of its own, and the servers (host:port) it fills
    and is served by: over gRPC, and over HTTP where they end with `_http`, empty for none.

    Both are the same server, but in prove mode, where the latter is an empty one.
    """

    work: Path
    fills: str
    served_by: str
    tools: Tools
    clock: Clock
    fills_http: str = ""
    served_http: str = ""


@dataclass(frozen=True)
class Check:
    """`carry_out` returns what was served, in one line, and raises what `errors` defines
    otherwise.  `http` is whether it needs a server's HTTP front.
    """

    name: str
    client: str
    seconds: float
    carry_out: Callable[[Bench], str]
    http: bool = False
