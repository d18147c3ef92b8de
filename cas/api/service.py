"""The services of one server, as handlers for either engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc

from cas.api import actions, assets, bytestream, capabilities, chunks, content
from cas.api.gate import Gate
from cas.api.limits import Limits
from cas.reapi.chunks import Chunks
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
    chunking: Chunks | None = None,
) -> list[grpc.GenericRpcHandler]:
    """The handlers of `SERVICES`.  `eof` is what the engine's `Context.read` ends with; without
    a `gate` everyone may do everything; without `origins` nothing is fetched; without `chunking`
    no blob is split or spliced."""
    average = 0 if chunking is None else chunking.average
    return [
        bytestream.ByteStream(store, runtime, limits, eof, gate).handler(),
        content.Content(store, runtime, limits, gate).handler(),
        actions.ActionCache(store, runtime, limits, gate).handler(),
        *([] if chunking is None else [chunks.Chunking(chunking, runtime, limits, gate).handler()]),
        capabilities.Capabilities(limits, gate, average).handler(),
        *assets.Assets(store, runtime, limits, gate, origins).handlers(),
    ]
