"""Capabilities: what this server serves.

Rule: states only what works; each figure is the one that is enforced.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc

from cas import fastcdc
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

    def __init__(self, limits: Limits, gate: Gate | None = None, average_chunk: int = 0) -> None:
        """`average_chunk`: as `describe` takes it."""
        self._gate = gate
        answers = [
            describe(limits, update_enabled=enabled, average_chunk=average_chunk)
            for enabled in (True, False)
        ]
        self._answer, self._readers = [answer.SerializeToString() for answer in answers]

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


def describe(
    limits: Limits, *, update_enabled: bool, average_chunk: int = 0
) -> pb.ServerCapabilities:
    """The capabilities for a caller whose action results are taken, or are not.

    `average_chunk` is that of blobs that are split, in bytes; 0 where none are.
    """
    fast_cdc = pb.FastCdc2020Params(avg_chunk_size_bytes=average_chunk, seed=fastcdc.SEED)
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
            split_blob_support=average_chunk > 0,
            splice_blob_support=average_chunk > 0,
            fast_cdc_2020_params=fast_cdc if average_chunk else None,
        ),
        low_api_version=semver_pb2.SemVer(major=LOW_VERSION[0], minor=LOW_VERSION[1]),
        high_api_version=semver_pb2.SemVer(major=HIGH_VERSION[0], minor=HIGH_VERSION[1]),
    )
