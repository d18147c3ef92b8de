"""One large blob, streamed up and down: seconds, and the server's memory at its peak.

Rule: the blob is never held anywhere here; its bytes are generated as they are
sent, and hashed as they come back.
"""

from __future__ import annotations

import hashlib
import struct
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import grpc

from benchmarks import proc
from benchmarks.compare import Drive, Report
from benchmarks.servers import DidNotStart, Kind, Running, running, scratch
from benchmarks.workloads import KIB, MIB
from cas.pb import bytestream_pb2 as bs

MESSAGE_BYTES = 64 * KIB
_BLOCK = 1 * MIB
_OPTIONS = [("grpc.max_receive_message_length", 64 * MIB), ("grpc.enable_http_proxy", 0)]


def blocks(size: int, seed: bytes) -> Iterator[bytes]:
    """`size` bytes in blocks of 1 MiB that all differ; the same for the same `seed`."""
    base = hashlib.shake_128(seed).digest(_BLOCK)
    for number, offset in enumerate(range(0, size, _BLOCK)):
        yield (struct.pack("<Q", number) + base[8:])[: size - offset]


def large(kinds: Sequence[Kind], size: int, drive: Drive, report: Report) -> dict[str, Any]:
    """For each server: seconds and server CPU seconds up and down, peak memory of each."""
    seed = uuid.uuid4().bytes
    hasher = hashlib.sha256()
    for block in blocks(size, seed):
        hasher.update(block)
    name = f"blobs/{hasher.hexdigest()}/{size}"
    servers = {}
    for kind in kinds:
        try:
            with scratch(drive.directory) as directory, running(kind, directory) as server:
                servers[kind.name] = _one(server, name, size, seed)
        except (DidNotStart, grpc.RpcError) as error:
            problem = error.details() if isinstance(error, grpc.Call) else str(error)
            servers[kind.name] = {"problem": problem}
        report(f"large  {kind.name}  {servers[kind.name]}")
    return {"size": size, "message_bytes": MESSAGE_BYTES, "servers": servers}


def _one(server: Running, name: str, size: int, seed: bytes) -> dict[str, Any]:
    with grpc.insecure_channel(server.address, options=_OPTIONS) as channel:
        write = channel.stream_unary(
            "/google.bytestream.ByteStream/Write",
            request_serializer=bs.WriteRequest.SerializeToString,
            response_deserializer=bs.WriteResponse.FromString,
        )
        read = channel.unary_stream(
            "/google.bytestream.ByteStream/Read",
            request_serializer=bs.ReadRequest.SerializeToString,
            response_deserializer=bs.ReadResponse.FromString,
        )
        with _Watch(server) as up:
            committed = write(_requests(name, size, seed)).committed_size
        if committed != size:
            return {"problem": f"committed {committed} of {size} bytes"}
        with _Watch(server) as down:
            hasher = hashlib.sha256()
            for response in read(bs.ReadRequest(resource_name=name)):
                hasher.update(response.data)
        if hasher.hexdigest() not in name:
            return {"problem": "read back otherwise than written"}
    return {"write": up.figures, "read": down.figures}


def _requests(name: str, size: int, seed: bytes) -> Iterator[bs.WriteRequest]:
    resource_name = f"uploads/{uuid.uuid4()}/{name}"
    offset = 0
    for block in blocks(size, seed):
        for start in range(0, len(block), MESSAGE_BYTES):
            data = block[start : start + MESSAGE_BYTES]
            yield bs.WriteRequest(
                resource_name=resource_name if offset == 0 else "",
                write_offset=offset,
                data=data,
                finish_write=offset + len(data) == size,
            )
            offset += len(data)


class _Watch:
    """Wall time, server CPU and peak memory between entry and exit."""

    figures: dict[str, float]

    def __init__(self, server: Running) -> None:
        self._pid = server.pid

    def __enter__(self) -> _Watch:
        proc.reset_peaks(self._pid)
        self._cpu, self._clock = proc.cpu_seconds(self._pid), time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        parts = proc.memory(self._pid).values()
        self.figures = {
            "seconds": time.monotonic() - self._clock,
            "cpu_seconds": proc.cpu_seconds(self._pid) - self._cpu,
            "peak_resident": max((part.peak for part in parts), default=0),
        }
