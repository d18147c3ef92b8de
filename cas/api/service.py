"""The services of one server, as handlers for either engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc

from cas.api import actions, bytestream, capabilities, content
from cas.api.limits import Limits
from cas.store.interface import BlobStore

if TYPE_CHECKING:
    from cas.rpc.handler import Runtime

SERVICES = (bytestream.SERVICE, content.SERVICE, actions.SERVICE, capabilities.SERVICE)
"""Full names, for health and reflection."""


def handlers(
    store: BlobStore, runtime: Runtime, limits: Limits, eof: object
) -> list[grpc.GenericRpcHandler]:
    """The handlers of `SERVICES`.  `eof` is what the engine's `Context.read` ends with."""
    return [
        bytestream.ByteStream(store, runtime, limits, eof).handler(),
        content.Content(store, runtime, limits).handler(),
        actions.ActionCache(store, runtime, limits).handler(),
        capabilities.Capabilities(limits).handler(),
    ]
