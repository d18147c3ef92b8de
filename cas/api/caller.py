"""Who calls: what clients say of themselves in REAPI's RequestMetadata.

Rule: reads metadata only, trusts nothing of it: it is for logs, records and the few
accommodations that a known client needs.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from google.protobuf.message import DecodeError

from cas.metrics.tools import product
from cas.pb import remote_execution_pb2 as pb

if TYPE_CHECKING:
    from cas.rpc.handler import Context

HEADER = "build.bazel.remote.execution.v2.requestmetadata-bin"


class Caller(NamedTuple):
    """Empty strings where the client said nothing."""

    tool: str
    version: str
    invocation: str
    action: str

    @property
    def label(self) -> str:
        """``bazel 7.1.0``, for people."""
        return f"{self.tool} {self.version}".strip()


def header(context: Context) -> str | bytes | None:
    """The raw RequestMetadata, None where the client sent none."""
    for key, value in context.invocation_metadata() or ():
        if key == HEADER:
            return value
    return None


def of(context: Context) -> Caller | None:
    """What the client says of itself; None where it says nothing, or nothing readable."""
    raw = header(context)
    if raw is None:
        return None
    try:
        said = pb.RequestMetadata.FromString(raw if isinstance(raw, bytes) else raw.encode())
    except DecodeError:
        return None
    details = said.tool_details
    return Caller(
        _clean(details.tool_name),
        _clean(details.tool_version),
        _clean(said.tool_invocation_id),
        _clean(said.action_id),
    )


def tool(context: Context) -> str:
    """What the client calls itself, or else what its gRPC does: for counting (3 µs)."""
    agent = ""
    for key, value in context.invocation_metadata() or ():
        if key == HEADER and isinstance(value, bytes):
            with suppress(DecodeError):
                details = pb.RequestMetadata.FromString(value).tool_details
                if details.tool_name:
                    return f"{details.tool_name} {details.tool_version}".strip()
        elif key == "user-agent" and isinstance(value, str):
            agent = value
    return product(agent)


def _clean(text: str) -> str:
    return "".join(c for c in text[:200] if c.isprintable())
