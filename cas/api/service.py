"""The services of one server, as handlers for either engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc

from cas.api import actions, assets, bytestream, capabilities, content
from cas.api.gate import Gate
from cas.api.limits import Limits
from cas.reapi.origin import Origins
from cas.store.interface import BlobStore

if TYPE_CHECKING:
    from cas.rpc.handler import Runtime

SERVICES = (
    bytestream.SERVICE,
    content.SERVICE,
    actions.SERVICE,
    capabilities.SERVICE,
    assets.FETCH,
    assets.PUSH,
)
"""Full names, for health and reflection."""


def handlers(
    store: BlobStore,
    runtime: Runtime,
    limits: Limits,
    eof: object,
    gate: Gate | None = None,
    origins: Origins | None = None,
) -> list[grpc.GenericRpcHandler]:
    """The handlers of `SERVICES`.  `eof` is what the engine's `Context.read` ends with; without
    a `gate` everyone may do everything; without `origins` nothing is fetched."""
    return [
        bytestream.ByteStream(store, runtime, limits, eof, gate).handler(),
        content.Content(store, runtime, limits, gate).handler(),
        actions.ActionCache(store, runtime, limits, gate).handler(),
        capabilities.Capabilities(limits, gate).handler(),
        *assets.Assets(store, runtime, limits, gate, origins).handlers(),
    ]
