"""What every protocol here works with."""

from __future__ import annotations

from dataclasses import dataclass, field

from aiohttp.web import BaseRequest, RequestKey

from cas.access.authenticate import Caller
from cas.digest import ENABLED, Functions
from cas.http.answers import Answer
from cas.http.bodies import Body, Pace
from cas.http.runtime import LoopRuntime
from cas.http.sending import Stream
from cas.http.writing import Writer
from cas.reapi import authors
from cas.store.interface import BlobStore

Reply = Answer | Stream

CALLER = RequestKey("caller", Caller)
"""Where a request keeps who asks, if anybody wanted to know."""


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """What an operator allows clients."""

    functions: Functions = ENABLED
    """Digest functions that paths may mean."""
    max_blob_size: int = 64 << 30
    """Largest content accepted, bytes; 0 is no limit."""
    max_message_size: int = 16 << 20
    """Largest action result accepted, bytes."""
    max_requests: int = 4096
    """Requests served at once."""
    require_references: bool = False
    """Refuse an action result that references absent blobs."""
    pace: Pace = field(default_factory=Pace)


@dataclass(frozen=True, slots=True)
class Context:
    """Made once for each process."""

    store: BlobStore
    runtime: LoopRuntime
    limits: HttpLimits
    writer: Writer

    def body(self, request: BaseRequest) -> Body:
        return Body(request, self.limits.pace, self.limits.max_blob_size)


def author(request: BaseRequest) -> str:
    """Who writes, and by what address and tool, as it is kept."""
    peer = request.transport.get_extra_info("peername") if request.transport else None
    shown = "unix:"
    if isinstance(peer, tuple):
        shown = f"ipv6:[{peer[0]}]:{peer[1]}" if ":" in peer[0] else f"ipv4:{peer[0]}:{peer[1]}"
    caller = request.get(CALLER)
    principal = "" if caller is None else caller.name
    return authors.pack(principal, shown, request.headers.get("User-Agent", ""))
