"""``python -m benchmarks.heavy``: many connections, many uploads, clients that stall, fairness.

Rule: one server of ours, one client process with every connection in it; what is looked at is
what the server holds (memory, open files) and how long a small read takes meanwhile.

* uploads: `--connections`, each with two uploads at once, all of which must be acknowledged.
* stalls: uploads that send a part and no more, reads of a large blob whose client takes
  nothing.  The server must end them all by itself.
* fairness: small reads one after another, first alone, then beside large uploads.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import statistics
import sys
import time
import uuid
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from benchmarks import proc
from benchmarks.servers import Running, ours, running, scratch
from benchmarks.workloads import KIB, MIB
from cas.pb import bytestream_pb2 as pb

PATIENCE = 120.0
SMALL = os.urandom(KIB)
LARGE = os.urandom(64 * MIB)
MESSAGE = 64 * KIB


@dataclass(frozen=True, slots=True)
class Held:
    """What the largest worker holds."""

    memory: int
    """Bytes resident at the peak since the last look."""
    files: int
    """Descriptors open now, sockets included."""


def main() -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.heavy")
    parser.add_argument("--connections", type=int, default=1_000)
    parser.add_argument("--uploads", type=int, default=64, help="large ones, for fairness (64)")
    parser.add_argument("--reads", type=int, default=3_000, help="small ones, each time (3000)")
    parser.add_argument("--stall-timeout", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    asked = parser.parse_args()
    # All connections come from one address here.
    arguments = ["--max-uploads-per-client", "0", "--stall-timeout", str(asked.stall_timeout)]
    kind = ours("ours", asked.workers, arguments)
    with scratch() as directory, running(kind, directory) as server:
        print(f"at rest: {_shown(held(server))}")
        failed = asyncio.run(many_uploads(server.address, asked.connections, 2))
        print(f"uploads: {2 * asked.connections} at once: {failed} failed; {_shown(held(server))}")
        stayed = asyncio.run(stalled(server, asked.connections, asked.stall_timeout))
        print(f"stalls: {2 * asked.connections}: {_shown(stayed)}; then {_shown(held(server))}")
        quiet, busy = fairness(server.address, asked.uploads, asked.reads)
        print(
            f"fairness: p99 of a read of 1 KiB {quiet * 1e3:.2f} ms alone, {busy * 1e3:.2f} ms "
            f"beside {asked.uploads} uploads of 64 MiB: {busy / quiet:.1f} times"
        )
    return 1 if failed else 0


def held(server: Running) -> Held:
    """Of the workers, the largest; peaks start anew."""
    parts = proc.memory(server.pid)
    files = [len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in parts]
    proc.reset_peaks(server.pid)
    return Held(max(part.peak for part in parts.values()), max(files))


async def many_uploads(address: str, connections: int, each: int) -> int:
    """Uploads a blob of its own `each` times at once on every connection; how many failed."""
    async with AsyncExitStack() as stack:
        channels = [await stack.enter_async_context(_channel(address)) for _ in range(connections)]
        everyone = asyncio.Barrier(connections * each)

        async def upload(channel: Any) -> None:
            data = os.urandom(256 * KIB)

            async def requests() -> AsyncIterator[pb.WriteRequest]:
                first, *others = _write_requests(data)
                yield first
                # All are open before any goes on.
                await everyone.wait()
                for request in others:
                    yield request

            await _write(channel)(requests(), timeout=PATIENCE)

        work = [upload(channel) for channel in channels for _ in range(each)]
        results = await asyncio.gather(*work, return_exceptions=True)
    return sum(isinstance(result, BaseException) for result in results)


async def stalled(server: Running, connections: int, stall_timeout: int) -> Held:
    """As many uploads and reads that stall, until the server has ended them all; what it held
    while it bore with them.  Raises TimeoutError when it does not end them."""
    async with AsyncExitStack() as stack:
        channels = [
            await stack.enter_async_context(_channel(server.address))
            for _ in range(max(1, connections // 10))
        ]
        await _write(channels[0])(_stream(_write_requests(LARGE)), timeout=PATIENCE)
        name = f"blobs/{sha256(LARGE).hexdigest()}/{len(LARGE)}"
        uploads, reads = [], []
        for number in range(connections):
            channel = channels[number % len(channels)]
            upload = _write(channel)()
            data = os.urandom(MESSAGE) + bytes(MESSAGE)
            await upload.write(next(iter(_write_requests(data))))
            uploads.append(upload)
            reads.append(_read(channel)(pb.ReadRequest(resource_name=name)))
        await asyncio.sleep(stall_timeout / 2)
        there = held(server)
        # Of a read, the client hears nothing as long as it takes nothing.
        async with asyncio.timeout(stall_timeout + PATIENCE):
            codes = {await call.code() for call in uploads}
            while held(server).files > there.files - connections:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.5)
        if codes != {grpc.StatusCode.DEADLINE_EXCEEDED}:
            raise ValueError(f"stalled uploads ended with {codes}")
        for read in reads:
            read.cancel()
    return there


def fairness(address: str, uploads: int, reads: int) -> tuple[float, float]:
    """The 99th percentile of a small read in seconds: alone, and beside large uploads, which a
    process of their own sends."""
    quiet = asyncio.run(small_reads(address, reads))
    spawn = multiprocessing.get_context("spawn")
    flowing = spawn.Event()
    process = spawn.Process(target=large_uploads, args=(address, uploads, flowing), daemon=True)
    process.start()
    try:
        if not flowing.wait(PATIENCE):
            raise TimeoutError("the large uploads do not begin")
        busy = asyncio.run(small_reads(address, reads))
    finally:
        process.kill()
        process.join()
    return quiet, busy


async def small_reads(address: str, reads: int) -> float:
    """The 99th percentile, in seconds, of reads one after another."""
    async with _channel(address) as channel:
        await _write(channel)(_stream(_write_requests(SMALL)), timeout=PATIENCE)
        request = pb.ReadRequest(resource_name=f"blobs/{sha256(SMALL).hexdigest()}/{len(SMALL)}")
        times = []
        for _ in range(reads):
            began = time.perf_counter()
            async for _ in _read(channel)(request, timeout=PATIENCE):
                pass
            times.append(time.perf_counter() - began)
    return statistics.quantiles(times, n=100)[98]


def large_uploads(address: str, uploads: int, flowing: Any) -> None:
    """So many uploads at once, over and over, until the process is killed; sets `flowing` when
    the first one is through."""

    async def upload(channel: Any, number: int) -> None:
        for turn in range(1_000_000):
            data = b"%16d%16d" % (number, turn) + LARGE[32:]
            await _write(channel)(_stream(_write_requests(data)))
            flowing.set()

    async def run() -> None:
        async with AsyncExitStack() as stack:
            channels = [await stack.enter_async_context(_channel(address)) for _ in range(8)]
            await asyncio.gather(*(upload(channels[n % 8], n) for n in range(uploads)))

    asyncio.run(run())


def _channel(address: str) -> Any:
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
    return grpc.aio.insecure_channel(address, options=options)


def _write(channel: Any) -> Any:
    return channel.stream_unary(
        "/google.bytestream.ByteStream/Write",
        request_serializer=pb.WriteRequest.SerializeToString,
        response_deserializer=pb.WriteResponse.FromString,
    )


def _read(channel: Any) -> Any:
    return channel.unary_stream(
        "/google.bytestream.ByteStream/Read",
        request_serializer=pb.ReadRequest.SerializeToString,
        response_deserializer=pb.ReadResponse.FromString,
    )


def _write_requests(data: bytes) -> Iterator[pb.WriteRequest]:
    name = f"uploads/{uuid.uuid4()}/blobs/{sha256(data).hexdigest()}/{len(data)}"
    for at in range(0, len(data), MESSAGE):
        yield pb.WriteRequest(
            resource_name="" if at else name,
            write_offset=at,
            finish_write=at + MESSAGE >= len(data),
            data=data[at : at + MESSAGE],
        )


async def _stream(requests: Iterable[pb.WriteRequest]) -> AsyncIterator[pb.WriteRequest]:
    for request in requests:
        yield request


def _shown(found: Held) -> str:
    return f"{found.memory / MIB:.0f} MiB, {found.files} files open in the largest worker"


if __name__ == "__main__":
    sys.exit(main())
