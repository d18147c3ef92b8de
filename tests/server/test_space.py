"""A full store, as clients meet it: real processes, and more than fits."""

from __future__ import annotations

import hashlib
import random
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from cas.pb import bytestream_pb2, remote_execution_pb2
from tests.server.serving import PATIENCE, Start, channel, until

LIMIT = 64 << 20
CHUNK = 256 << 10

SIZES = (300, 3_000, 15_000, 100_000, 700_000, 2_500_000)
"""Bytes: rows of the index, values in it, files, uploads of many messages."""


def content(number: int) -> bytes:
    return random.Random(number).randbytes(SIZES[number % len(SIZES)])


def name_of(data: bytes) -> str:
    return f"blobs/{hashlib.sha256(data).hexdigest()}/{len(data)}"


def messages(data: bytes) -> Iterator[bytestream_pb2.WriteRequest]:
    name = f"uploads/{uuid.uuid4()}/{name_of(data)}"
    for at in range(0, len(data), CHUNK):
        part = data[at : at + CHUNK]
        yield bytestream_pb2.WriteRequest(
            resource_name=name,
            write_offset=at,
            data=part,
            finish_write=at + len(part) == len(data),
        )


def write(opened: grpc.Channel, data: bytes) -> None:
    call = opened.stream_unary(
        "/google.bytestream.ByteStream/Write",
        request_serializer=bytestream_pb2.WriteRequest.SerializeToString,
        response_deserializer=bytestream_pb2.WriteResponse.FromString,
    )
    assert call(messages(data), timeout=PATIENCE).committed_size == len(data)


def read(opened: grpc.Channel, data: bytes) -> bytes:
    call = opened.unary_stream(
        "/google.bytestream.ByteStream/Read",
        request_serializer=bytestream_pb2.ReadRequest.SerializeToString,
        response_deserializer=bytestream_pb2.ReadResponse.FromString,
    )
    request = bytestream_pb2.ReadRequest(resource_name=name_of(data))
    return b"".join(part.data for part in call(request, timeout=PATIENCE))


def missing(opened: grpc.Channel, blobs: list[bytes]) -> int:
    """How many of them are not there; asks without reading them."""
    call = opened.unary_unary(
        "/build.bazel.remote.execution.v2.ContentAddressableStorage/FindMissingBlobs",
        request_serializer=remote_execution_pb2.FindMissingBlobsRequest.SerializeToString,
        response_deserializer=remote_execution_pb2.FindMissingBlobsResponse.FromString,
    )
    request = remote_execution_pb2.FindMissingBlobsRequest()
    for data in blobs:
        request.blob_digests.add(hash=hashlib.sha256(data).hexdigest(), size_bytes=len(data))
    return len(call(request, timeout=PATIENCE).missing_blob_digests)


def disk_bytes(directory: Path) -> int:
    total = 0
    for path in [directory, *directory.rglob("*")]:
        try:
            total += path.lstat().st_blocks * 512
        except FileNotFoundError:
            continue
    return total


def test_a_flood_stays_below_the_limit_and_leaves_the_latest(start: Start, tmp_path: Path) -> None:
    server = start(
        "--max-size", "64MiB", "--workers", "2", "--durability", "none", "--min-age", "0"
    )
    kept: list[int] = []
    written = 0
    highest = 0
    with channel(server) as opened:
        while written < 4 * LIMIT:
            data = content(len(kept))
            write(opened, data)
            kept.append(len(kept))
            written += len(data)
            if len(kept) % 40 == 0:
                highest = max(highest, disk_bytes(tmp_path / "store"))
        # What came last is there, a third of the limit at least; what came first is not.
        latest: list[bytes] = []
        while sum(map(len, latest)) < LIMIT // 3:
            latest.append(content(kept[-1 - len(latest)]))
        assert missing(opened, latest) == 0
        for data in latest:
            assert read(opened, data) == data
        early = [content(number) for number in kept[: len(latest)]]
        assert missing(opened, early) == len(early)
    until(lambda: bool(server.events("evicted")), "the notice of an eviction")
    highest = max(highest, disk_bytes(tmp_path / "store"))
    assert 0.6 * LIMIT < highest <= LIMIT
    server.process.terminate()
    assert server.ends() == 0


def test_young_blobs_go_only_when_writes_would_be_refused(start: Start) -> None:
    server = start("--max-size", "64MiB", "--durability", "none")
    with channel(server) as opened:
        for number in range(75):
            write(opened, random.Random(number).randbytes(1_000_000))
    refused = "evicted before min_age, since the store is full"
    until(lambda: bool(server.events(refused)), "the warning")
    (first, *_) = server.events(refused)
    assert first["level"] == "warning"
    assert first["role"] == "janitor"
    assert not server.events("evicted")


def test_what_never_fits_is_refused_and_reads_go_on(start: Start, tmp_path: Path) -> None:
    server = start("--max-size", "32MiB", "--durability", "none")
    small = content(3)
    with channel(server) as opened:
        write(opened, small)
        begun = time.monotonic()
        with pytest.raises(grpc.RpcError) as caught:
            write(opened, bytes(40 << 20))
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "never fit" in str(caught.value.details())
        assert time.monotonic() - begun < PATIENCE
        assert read(opened, small) == small
        write(opened, content(4))
        assert read(opened, content(4)) == content(4)
    assert not any((tmp_path / "store/staging").rglob("*/*"))
