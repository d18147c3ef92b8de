"""Capabilities: what this server serves.

Rule: states only what works; each figure is the one that is enforced.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc

from cas.api import names
from cas.api.gate import Gate
from cas.api.limits import Limits
from cas.api.status import guarded
from cas.pb import remote_execution_pb2 as pb
from cas.pb import semver_pb2

if TYPE_CHECKING:
    from cas.rpc.handler import Context

SERVICE = "build.bazel.remote.execution.v2.Capabilities"

LOW_VERSION = (2, 0)
HIGH_VERSION = (2, 11)
"""REAPI versions served."""


class Capabilities:
    """The servicer.  Its answers are made once; requests are parsed to be checked."""

    def __init__(self, limits: Limits, gate: Gate | None = None) -> None:
        self._gate = gate
        self._answer = describe(limits, update_enabled=True).SerializeToString()
        self._readers = describe(limits, update_enabled=False).SerializeToString()

    def handler(self) -> grpc.GenericRpcHandler:
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "GetCapabilities": grpc.unary_unary_rpc_method_handler(
                    guarded(self.get, self._gate),
                    request_deserializer=pb.GetCapabilitiesRequest.FromString,
                )
            },
        )

    async def get(self, request: pb.GetCapabilitiesRequest, context: Context) -> bytes:
        context.instance = names.check_instance(request.instance_name)
        if self._gate is not None:
            self._gate.read(context)
            # Bazel 4 does not build at all where it is told no (unless it is told not to upload);
            # that is what dropping writes is for.
            if not self._gate.takes(context):
                return self._readers
        return self._answer


def describe(limits: Limits, *, update_enabled: bool) -> pb.ServerCapabilities:
    """The capabilities for a caller whose action results are taken, or are not."""
    return pb.ServerCapabilities(
        cache_capabilities=pb.CacheCapabilities(
            digest_functions=[pb.DigestFunction.Value.Name(f.number) for f in limits.functions.all],
            action_cache_update_capabilities=pb.ActionCacheUpdateCapabilities(
                update_enabled=update_enabled
            ),
            max_batch_total_size_bytes=limits.max_batch_total_size,
            max_cas_blob_size_bytes=limits.max_blob_size,
            symlink_absolute_path_strategy=pb.SymlinkAbsolutePathStrategy.ALLOWED,
            supported_compressors=[pb.Compressor.ZSTD],
            supported_batch_update_compressors=[pb.Compressor.ZSTD],
        ),
        low_api_version=semver_pb2.SemVer(major=LOW_VERSION[0], minor=LOW_VERSION[1]),
        high_api_version=semver_pb2.SemVer(major=HIGH_VERSION[0], minor=HIGH_VERSION[1]),
    )
