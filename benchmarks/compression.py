"""``python -m benchmarks.compression``: what zstd and chunks save on the wire and on disk, and what
they cost.

Rule: real content, real servers, each on an empty directory; every file of a data set is one
blob, written by ByteStream in messages of 64 KiB, then read back, eight at a time, one version of
the content after the other.  Sent are the bytes of data in messages; stored is what the server's
directory takes, in bytes and in blocks; CPU is the server's, all its processes.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import time
import uuid
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import zstandard

from benchmarks import proc, servers
from benchmarks.chunked import Chunked, Whole
from benchmarks.servers import Kind
from cas.pb import bytestream_pb2 as bs

MIB = 1 << 20
MESSAGE = 64 << 10
LEVEL = 1
"""Of the client's zstd."""
CALLS = 8
"""At once."""
FIRST = b"the first blob"


@dataclass(frozen=True)
class Result:
    """One data set through one server.  Bytes, and µs of the server's CPU per MiB of content."""

    content: int
    sent: int
    received: int
    stored: int
    blocks: int
    write_cpu: float
    read_cpu: float


def contents(path: Path) -> Iterator[bytes]:
    """The blobs of a data set: a directory's files, those in a wheel (``.whl``), or one file."""
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            if file.is_file() and not file.is_symlink():
                yield file.read_bytes()
    elif path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            for name in wheel.namelist():
                yield wheel.read(name)
    else:
        yield path.read_bytes()


Versions = Sequence[Mapping[str, bytes]]
"""Blobs by their digests, in the order in which they came to be."""


def blobs(paths: Sequence[Path]) -> Versions:
    """A version for each path, without what an earlier one has."""
    seen: set[str] = set()
    out = []
    for path in paths:
        found = {hashlib.sha256(data).hexdigest(): data for data in contents(path) if data}
        out.append({digest: data for digest, data in found.items() if digest not in seen})
        seen |= found.keys()
    return out


class Client:
    """ByteStream as a client calls it."""

    def __init__(self, address: str, *, zstd: bool) -> None:
        self.channel = grpc.insecure_channel(
            address, options=[("grpc.max_receive_message_length", -1)]
        )
        self._write: Any = self.channel.stream_unary(
            "/google.bytestream.ByteStream/Write",
            request_serializer=bs.WriteRequest.SerializeToString,
            response_deserializer=bs.WriteResponse.FromString,
        )
        self._read: Any = self.channel.unary_stream(
            "/google.bytestream.ByteStream/Read",
            request_serializer=bs.ReadRequest.SerializeToString,
            response_deserializer=bs.ReadResponse.FromString,
        )
        self._zstd = zstd

    def close(self) -> None:
        self.channel.close()

    def write(self, digest: str, data: bytes) -> int:
        kind, size = "blobs", len(data)
        if self._zstd:
            kind = "compressed-blobs/zstd"
            data = zstandard.ZstdCompressor(level=LEVEL).compress(data)
        name = f"uploads/{uuid.uuid4()}/{kind}/{digest}/{size}"

        def messages() -> Iterator[bs.WriteRequest]:
            for at in range(0, len(data), MESSAGE):
                part = data[at : at + MESSAGE]
                yield bs.WriteRequest(
                    resource_name="" if at else name,
                    write_offset=at,
                    data=part,
                    finish_write=at + len(part) == len(data),
                )

        self._write(messages())
        return len(data)

    def read(self, digest: str, data: bytes) -> int:
        kind = "compressed-blobs/zstd" if self._zstd else "blobs"
        name = f"{kind}/{digest}/{len(data)}"
        got = b"".join(r.data for r in self._read(bs.ReadRequest(resource_name=name)))
        content = got
        if self._zstd:
            reader = zstandard.ZstdDecompressor().stream_reader(got, read_across_frames=True)
            content = reader.read()
        if content != data:
            raise ValueError(f"{digest} came back wrong")
        return len(got)


def measure(
    kind: Kind,
    data: Versions,
    parent: Path | None,
    *,
    zstd: bool,
    chunks: bool = False,
) -> Result:
    with (
        servers.scratch(parent) as scratch,
        servers.running(kind, scratch / "s") as server,
        ThreadPoolExecutor(CALLS) as pool,
    ):
        client = Client(server.address, zstd=zstd)
        way: Whole = Chunked(client.channel, client) if chunks else client
        total = sum(len(blob) for version in data for blob in version.values())
        # What a first entry costs is not the data's.
        client.write(hashlib.sha256(FIRST).hexdigest(), FIRST)
        time.sleep(0.5)
        before = _taken(scratch)
        began = _cpu(server)
        sent = 0
        for version in data:
            sent += sum(pool.map(lambda item: way.write(*item), version.items()))
        written = _cpu(server)
        time.sleep(0.5)
        stored = [after - b for after, b in zip(_taken(scratch), before, strict=True)]
        read_from = _cpu(server)
        received = 0
        for version in data:
            received += sum(pool.map(lambda item: way.read(*item), version.items()))
        read = _cpu(server)
        client.close()
    per = 1e6 * MIB / total
    length, blocks = stored
    cpu = ((written - began) * per, (read - read_from) * per)
    return Result(total, sent, received, length, blocks, *cpu)


def _cpu(server: servers.Running) -> float:
    return proc.cpu_seconds(server.pid)


def _taken(directory: Path) -> tuple[int, int]:
    """Bytes, as files' lengths tell them (a file with holes: what it takes), and blocks."""
    length = blocks = 0
    for top, _, names in os.walk(directory):
        for name in names:
            state = os.lstat(os.path.join(top, name))
            length += min(state.st_size, state.st_blocks * 512)
            blocks += state.st_blocks * 512
    return length, blocks


WAYS = {
    (False, False): "plain",
    (False, True): "zstd",
    (True, False): "CDC",
    (True, True): "CDC + zstd",
}
"""How content travels: (by chunks, as zstd)."""

HEAD = "| data | server | as | sent | stored | blocks | received | write CPU | read CPU |"


def row(name: str, kind: Kind, zstd: bool, result: Result, *, chunks: bool = False) -> str:
    cells = (
        name,
        kind.name,
        WAYS[chunks, zstd],
        f"{result.sent / MIB:.1f}",
        f"{result.stored / MIB:.1f}",
        f"{result.blocks / MIB:.1f}",
        f"{result.received / MIB:.1f}",
        f"{result.write_cpu:,.0f}",
        f"{result.read_cpu:,.0f}",
    )
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description="what zstd and chunks save, and their cost")
    parser.add_argument("data", nargs="+", metavar="NAME=PATH[,PATH]", help="a data set")
    parser.add_argument("--bazel-remote", type=Path, metavar="FILE", help="also against it")
    parser.add_argument("--scratch", type=Path, metavar="DIR", help="where servers store")
    options = parser.parse_args()
    kinds = [
        servers.ours("cas none", 1),
        servers.ours("cas zstd", 1, ("--compression", "zstd")),
    ]
    if options.bazel_remote:
        kinds.append(servers.bazel_remote(options.bazel_remote, "zstd"))
    print(HEAD)
    print("|---|---|---|" + "---:|" * 6)
    for argument in options.data:
        name, _, paths = argument.partition("=")
        data = blobs([Path(path) for path in paths.split(",")])
        for chunks, zstd in WAYS:
            # bazel-remote splices, and does not split.
            for kind in kinds[:2] if chunks else kinds:
                result = measure(kind, data, options.scratch, zstd=zstd, chunks=chunks)
                title = f"{name}, {result.content / MIB:.1f}"
                print(row(title, kind, zstd, result, chunks=chunks), flush=True)


if __name__ == "__main__":
    main()
