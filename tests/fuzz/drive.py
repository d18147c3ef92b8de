"""Sends made-up calls to a server, many at once, and judges every answer.

Rule: black box.  It knows the server's address and what any server may answer; how the server
fared meanwhile is for the caller to look at.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import grpc
import grpc.aio

from cas.pb import bytestream_pb2 as bs
from tests.fuzz.cases import COMMON, Case, blob, case, write_requests

AT_ONCE = 64
PATIENCE = 60.0
"""Seconds for an answer: generous, since a busy machine is no failure."""

EXPECTED = frozenset(
    (
        grpc.StatusCode.OK,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    )
)
"""What a hostile call may be answered with.  Not among them: UNKNOWN and INTERNAL, which would be
faults of the server, UNAVAILABLE, and no answer at all."""

OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
]


@dataclass(slots=True)
class Outcome:
    """What came of a run."""

    codes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    """For each answer that no call may get: the call's number, its method, and the answer."""


def run(address: str, seed: int, numbers: range) -> Outcome:
    """Sends the calls with these numbers."""
    return asyncio.run(_run(address, seed, numbers))


def fill(address: str) -> None:
    """Writes the blobs that calls find there."""
    with grpc.insecure_channel(address, options=OPTIONS) as channel:
        write = channel.stream_unary(
            "/google.bytestream.ByteStream/Write",
            request_serializer=bs.WriteRequest.SerializeToString,
            response_deserializer=bs.WriteResponse.FromString,
        )
        for number in COMMON:
            data = blob(number)
            name = f"uploads/fill/blobs/{sha256(data).hexdigest()}/{len(data)}"
            write(iter(write_requests(name, data, 65_536)), timeout=PATIENCE, wait_for_ready=True)


def wrong_blobs(address: str) -> list[int]:
    """The numbers of those blobs that do not read back as they were written."""
    wrong = []
    with grpc.insecure_channel(address, options=OPTIONS) as channel:
        read = channel.unary_stream(
            "/google.bytestream.ByteStream/Read",
            request_serializer=bs.ReadRequest.SerializeToString,
            response_deserializer=bs.ReadResponse.FromString,
        )
        for number in COMMON:
            data = blob(number)
            name = f"blobs/{sha256(data).hexdigest()}/{len(data)}"
            answer = read(bs.ReadRequest(resource_name=name), timeout=PATIENCE)
            if b"".join(message.data for message in answer) != data:
                wrong.append(number)
    return wrong


async def _run(address: str, seed: int, numbers: range) -> Outcome:
    outcome = Outcome()
    todo = iter(numbers)
    async with grpc.aio.insecure_channel(address, options=OPTIONS) as channel:
        with grpc.insecure_channel(address, options=OPTIONS) as streams:

            async def work() -> None:
                for number in todo:
                    await _one(channel, streams, seed, number, outcome)

            await asyncio.gather(*(work() for _ in range(AT_ONCE)))
    return outcome


async def _one(
    channel: grpc.aio.Channel, streams: grpc.Channel, seed: int, number: int, outcome: Outcome
) -> None:
    call = case(seed, number)
    try:
        await asyncio.wait_for(_answer(channel, streams, call), call.cancel)
        code, details = grpc.StatusCode.OK, ""
    except TimeoutError:
        outcome.codes["given up"] += 1
        return
    except grpc.RpcError as error:
        code, details = error.code(), error.details() or ""
    outcome.codes[code.name] += 1
    if code not in EXPECTED:
        outcome.wrong.append(f"call {number}: {call.method.path}: {code.name}: {details[:200]}")


async def _answer(channel: Any, streams: Any, call: Case) -> None:
    """Raises RpcError unless the answer is OK.

    The channels are Any: the types of grpcio know of no calls without serializers.
    """
    path, metadata = call.method.path, tuple(call.metadata)
    match call.method.kind:
        case "unary":
            await channel.unary_unary(path)(call.messages[0], metadata=metadata, timeout=PATIENCE)
        case "responses":
            stream = channel.unary_stream(path)
            async for _ in stream(call.messages[0], metadata=metadata, timeout=PATIENCE):
                pass
        case "requests":
            # Not grpc.aio's: a send that fails because the call has ended makes it forget how.
            write = streams.stream_unary(path)
            future = write.future(iter(call.messages), metadata=metadata, timeout=PATIENCE)
            ended = asyncio.Event()
            loop = asyncio.get_running_loop()
            future.add_done_callback(lambda _: loop.call_soon_threadsafe(ended.set))
            try:
                await ended.wait()
            finally:
                future.cancel()
            future.result()
