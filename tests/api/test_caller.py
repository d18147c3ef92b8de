"""What a client calls itself, whatever it sends."""

from __future__ import annotations

from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cas.api import caller
from cas.pb import remote_execution_pb2 as pb
from cas.rpc.handler import Context

BAZEL = pb.RequestMetadata(
    tool_details=pb.ToolDetails(tool_name="bazel", tool_version="7.4.1"), action_id="a"
).SerializeToString()
NAMELESS = pb.RequestMetadata(action_id="a").SerializeToString()
AGENT = ("user-agent", "grpc-go/1.64.0")


class Called:
    """As much of a context as is asked."""

    def __init__(self, metadata: Any) -> None:
        self._metadata = metadata

    def invocation_metadata(self) -> Any:
        return self._metadata


def tool(metadata: Any) -> str:
    return caller.tool(cast(Context, Called(metadata)))


@pytest.mark.parametrize(
    ("metadata", "name"),
    [
        ((AGENT, (caller.HEADER, BAZEL)), "bazel 7.4.1"),
        (((caller.HEADER, BAZEL), AGENT), "bazel 7.4.1"),
        ((AGENT, (caller.HEADER, NAMELESS)), "grpc-go 1.64.0"),
        ((AGENT, (caller.HEADER, b"\xff\xff")), "grpc-go 1.64.0"),
        ((AGENT,), "grpc-go 1.64.0"),
        ((), ""),
        (None, ""),
    ],
    ids=["metadata", "first", "nameless", "broken", "agent", "nothing", "none"],
)
def test_the_tool_is_named(metadata: Any, name: str) -> None:
    assert tool(metadata) == name


@given(st.binary(max_size=100), st.text(max_size=50))
def test_anything_may_be_sent(said: bytes, agent: str) -> None:
    assert isinstance(tool(((caller.HEADER, said), ("user-agent", agent))), str)
