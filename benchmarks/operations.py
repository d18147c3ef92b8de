"""How each workload is driven: what it stores beforehand, and what one operation is.

Rule: runs inside a generator process (`benchmarks.load`); talks to a server only
through public grpc.aio stubs that carry bytes.  Each workload's preparation checks
one whole answer, contents included, before any clock starts; the operation itself
checks what is cheap (lengths, committed sizes), so that a server that answers
wrongly fails the row instead of winning it.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc.aio

from benchmarks import messages, population
from benchmarks.messages import Family, Name
from benchmarks.workloads import MIB, Workload
from cas.pb import bytestream_pb2 as bs
from cas.pb import remote_execution_pb2 as re

_REAPI = "/build.bazel.remote.execution.v2."
_BYTE_STREAM = "/google.bytestream.ByteStream/"

STORED_BYTES = 256 * MIB
"""Most that a read workload stores beforehand, over all generator processes."""

WRITTEN_BYTES_A_SECOND = 800 * MIB
WRITTEN_BLOBS_A_SECOND = 30_000
"""What no server here exceeds: enough blobs are named beforehand for that pace."""

FIND_POPULATION_REQUESTS = 64
"""Distinct FindMissing requests over a large index, so that lookups are not all warm."""

PREPARING_AT_ONCE = 32

Operation = Callable[[int, int], Awaitable[None]]
"""(slot, number of the operation in this process): raises on any wrong answer."""


Unary = Callable[[bytes], Awaitable[bytes]]


class WrongAnswer(Exception):
    """The server said OK, and something that is not so."""


@dataclass(frozen=True, slots=True)
class Share:
    """One generator process's part of a run."""

    workload: Workload
    instance: str
    keys: int
    """Distinct blobs or actions of read workloads."""
    processes: int
    seconds: float
    population: int
    """Entries that `benchmarks.population` put into the index; 0 for none."""

    @property
    def stored_blobs(self) -> int:
        if self.workload.size == 0:
            return self.keys
        most = STORED_BYTES // self.processes // self.workload.size
        return max(2, self.workload.count, min(self.keys, most))

    @property
    def written_operations(self) -> int:
        pace = min(
            WRITTEN_BLOBS_A_SECOND / self.workload.count,
            WRITTEN_BYTES_A_SECOND / self.workload.bytes_per_operation,
        )
        return max(4, int(pace * self.seconds / self.processes))


@dataclass(frozen=True, slots=True)
class Prepared:
    """`limit`: after so many operations there is nothing new left to send."""

    operation: Operation
    limit: int | None = None


class Stubs:
    """The methods of one channel, as bytes to bytes."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        cas = _REAPI + "ContentAddressableStorage/"
        # Without serialisers messages are bytes, which grpcio's types cannot say.
        unary: Any = channel.unary_unary
        self.capabilities: Unary = unary(_REAPI + "Capabilities/GetCapabilities")
        self.get_action: Unary = unary(_REAPI + "ActionCache/GetActionResult")
        self.update_action: Unary = unary(_REAPI + "ActionCache/UpdateActionResult")
        self.find_missing: Unary = unary(cas + "FindMissingBlobs")
        self.batch_update: Unary = unary(cas + "BatchUpdateBlobs")
        self.batch_read: Unary = unary(cas + "BatchReadBlobs")
        self.read: Any = channel.unary_stream(_BYTE_STREAM + "Read")
        self.write: Any = channel.stream_unary(_BYTE_STREAM + "Write")


async def prepare(share: Share, stubs: list[Stubs]) -> Prepared:
    """Stores what the workload needs and checks one operation's whole answer."""
    return await _PREPARATIONS[share.workload.kind](share, stubs)


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise WrongAnswer(message)


async def _read_all(stubs: Stubs, request: bytes) -> list[bytes]:
    call = stubs.read(request)
    found: list[bytes] = []
    while (message := await call.read()) is not grpc.aio.EOF:
        found.append(message)
    return found


async def _write(stubs: Stubs, first: bytes, writes: messages.Writes) -> None:
    call = stubs.write()
    try:
        await call.write(first)
        for message in writes.rest:
            await call.write(message)
        await call.done_writing()
    except grpc.aio.UsageError:
        # The server answered before the last message; its answer tells why.
        pass
    answer = await call
    if answer != writes.response:
        size = bs.WriteResponse.FromString(answer).committed_size
        raise WrongAnswer(f"committed_size {size} after a whole blob")


class _Uploads:
    """Names for uploads that no other process or run uses."""

    def __init__(self) -> None:
        self._prefix = f"{os.urandom(4).hex()}-{os.urandom(2).hex()}-4000-8000-"
        self._next = 0

    def next(self) -> str:
        self._next += 1
        return f"{self._prefix}{self._next:012x}"


async def _store(share: Share, stubs: list[Stubs], size: int, count: int) -> list[Name]:
    family = Family.random(size)
    writes = messages.Writes(family, share.workload.message_bytes, share.instance)
    uploads = _Uploads()
    heads = [family.head() for _ in range(count)]
    names = [family.name(head) for head in heads]

    async def store(number: int) -> None:
        first = writes.first(uploads.next(), names[number], heads[number])
        await _write(stubs[number % len(stubs)], first, writes)

    await _each(store, count)
    return names


async def _each(act: Callable[[int], Awaitable[None]], count: int) -> None:
    """`act` on every number below `count`, several at a time: a server that syncs groups of
    writes would otherwise sync each."""
    numbers = iter(range(count))

    async def lane() -> None:
        for number in numbers:
            await act(number)

    async with asyncio.TaskGroup() as group:
        for _ in range(min(count, PREPARING_AT_ONCE)):
            group.create_task(lane())


async def _capabilities(share: Share, stubs: list[Stubs]) -> Prepared:
    request = re.GetCapabilitiesRequest(instance_name=share.instance).SerializeToString()
    expected = await stubs[0].capabilities(request)
    answer = re.ServerCapabilities.FromString(expected)
    _check(bool(answer.cache_capabilities.digest_functions), "no digest function in capabilities")

    async def operation(slot: int, _number: int) -> None:
        answer = await stubs[slot % len(stubs)].capabilities(request)
        _check(len(answer) == len(expected), f"capabilities of {len(answer)} bytes")

    return Prepared(operation)


async def _read(share: Share, stubs: list[Stubs]) -> Prepared:
    size = share.workload.size
    names = await _store(share, stubs, size, share.stored_blobs)
    requests = [messages.read_request(share.instance, name) for name in names]
    hasher = hashlib.sha256()
    for message in await _read_all(stubs[0], requests[0]):
        hasher.update(bs.ReadResponse.FromString(message).data)
    _check(hasher.hexdigest() == names[0].hash, f"blob {names[0].hash} read back otherwise")

    async def operation(slot: int, number: int) -> None:
        call = stubs[slot % len(stubs)].read(requests[number % len(requests)])
        received = 0
        while (message := await call.read()) is not grpc.aio.EOF:
            received += messages.data_length(message)
        _check(received == size, f"read {received} of {size} bytes")

    return Prepared(operation)


async def _write_new(share: Share, stubs: list[Stubs]) -> Prepared:
    family = Family.random(share.workload.size)
    writes = messages.Writes(family, share.workload.message_bytes, share.instance)
    uploads = _Uploads()
    heads = [family.head() for _ in range(share.written_operations)]
    blobs = [(head, family.name(head)) for head in heads]

    head, name = blobs.pop()
    await _write(stubs[0], writes.first(uploads.next(), name, head), writes)
    read_back = await _read_all(stubs[0], messages.read_request(share.instance, name))
    content = b"".join(bs.ReadResponse.FromString(message).data for message in read_back)
    _check(content == family.blob(head), f"blob {name.hash} read back otherwise")

    async def operation(slot: int, number: int) -> None:
        head, name = blobs[number]
        first = writes.first(uploads.next(), name, head)
        await _write(stubs[slot % len(stubs)], first, writes)

    return Prepared(operation, limit=len(blobs))


async def _find(share: Share, stubs: list[Stubs]) -> Prepared:
    count = share.workload.count
    if share.population:
        return await _find_in_population(share, stubs)
    present = await _store(share, stubs, 64, min(count, 500))
    absent = {messages.name_of(os.urandom(64)) for _ in range(count - len(present))}
    request = messages.find_request(share.instance, [*present, *absent])
    expected = await stubs[0].find_missing(request)
    _check_missing(expected, absent)

    async def operation(slot: int, _number: int) -> None:
        answer = await stubs[slot % len(stubs)].find_missing(request)
        _check(len(answer) == len(expected), f"{len(answer)} bytes of missing digests")

    return Prepared(operation)


async def _find_in_population(share: Share, stubs: list[Stubs]) -> Prepared:
    """Half of each request's digests are in the index, drawn from all of it at random."""
    count = share.workload.count
    requests = []
    length = 0
    for _ in range(FIND_POPULATION_REQUESTS):
        numbers = random.sample(range(share.population), min(count // 2, share.population))
        present = [messages.name_of(population.blob(number)) for number in numbers]
        absent = {messages.name_of(os.urandom(64)) for _ in range(count - len(present))}
        request = messages.find_request(share.instance, [*present, *absent])
        answer = await stubs[0].find_missing(request)
        _check_missing(answer, absent)
        requests.append(request)
        length = len(answer)

    async def operation(slot: int, number: int) -> None:
        request = requests[number % len(requests)]
        answer = await stubs[slot % len(stubs)].find_missing(request)
        _check(len(answer) == length, f"{len(answer)} bytes of missing digests")

    return Prepared(operation)


def _check_missing(answer: bytes, absent: set[Name]) -> None:
    missing = re.FindMissingBlobsResponse.FromString(answer).missing_blob_digests
    found = {Name(digest.hash, digest.size_bytes) for digest in missing}
    _check(found == absent, f"{len(found)} digests said to be missing, {len(absent)} are")


async def _stored_result(share: Share, stubs: list[Stubs]) -> re.ActionResult:
    outputs = await _store(share, stubs, 256, 3)
    return messages.action_result(outputs, random.randrange(10**8))


async def _get_action(share: Share, stubs: list[Stubs]) -> Prepared:
    result = await _stored_result(share, stubs)
    actions = [messages.name_of(os.urandom(140)) for _ in range(share.stored_blobs)]

    async def store(number: int) -> None:
        update = messages.update_action_request(share.instance, actions[number], result)
        await stubs[number % len(stubs)].update_action(update)

    await _each(store, len(actions))
    requests = [messages.get_action_request(share.instance, action) for action in actions]
    # A server may add who executed the action; what was stored must be there.
    answer = re.ActionResult.FromString(await stubs[0].get_action(requests[0]))
    _check(answer.output_files == result.output_files, "another action result than was stored")
    least = result.ByteSize()

    async def operation(slot: int, number: int) -> None:
        answer = await stubs[slot % len(stubs)].get_action(requests[number % len(requests)])
        _check(len(answer) >= least, f"action result of {len(answer)} bytes, stored {least}")

    return Prepared(operation)


async def _update_action(share: Share, stubs: list[Stubs]) -> Prepared:
    result = await _stored_result(share, stubs)
    actions = [messages.name_of(os.urandom(140)) for _ in range(share.stored_blobs)]
    requests = [messages.update_action_request(share.instance, a, result) for a in actions]
    await stubs[0].update_action(requests[0])
    get = messages.get_action_request(share.instance, actions[0])
    answer = re.ActionResult.FromString(await stubs[0].get_action(get))
    _check(answer.output_files == result.output_files, "another action result than was stored")

    async def operation(slot: int, number: int) -> None:
        await stubs[slot % len(stubs)].update_action(requests[number % len(requests)])

    return Prepared(operation)


async def _batch_read(share: Share, stubs: list[Stubs]) -> Prepared:
    count, size = share.workload.count, share.workload.size
    names = await _store(share, stubs, size, share.stored_blobs)
    doubled = names + names
    requests = [
        messages.batch_read_request(share.instance, doubled[start : start + count])
        for start in range(0, len(names), count)
    ]
    expected = await stubs[0].batch_read(requests[0])
    responses = re.BatchReadBlobsResponse.FromString(expected).responses
    _check(len(responses) == count, f"{len(responses)} responses to {count} digests")
    for response in responses:
        _check(response.status.code == 0, f"status {response.status.code} for a stored blob")
        _check(
            messages.name_of(response.data).hash == response.digest.hash,
            f"blob {response.digest.hash} read back otherwise",
        )

    async def operation(slot: int, number: int) -> None:
        answer = await stubs[slot % len(stubs)].batch_read(requests[number % len(requests)])
        _check(len(answer) == len(expected), f"{len(answer)} bytes of {len(expected)}")

    return Prepared(operation)


async def _batch_update(share: Share, stubs: list[Stubs]) -> Prepared:
    count, size = share.workload.count, share.workload.size
    family = Family.random(size)
    updates = messages.BatchUpdates(family, share.instance)

    def batch() -> list[tuple[bytes, bytes]]:
        heads = [family.head() for _ in range(count)]
        return [(head, family.name(head).hash.encode()) for head in heads]

    batches = [batch() for _ in range(share.written_operations)]
    expected = await stubs[0].batch_update(updates.request(batches.pop()))
    responses = re.BatchUpdateBlobsResponse.FromString(expected).responses
    _check(len(responses) == count, f"{len(responses)} responses to {count} blobs")
    codes = {response.status.code for response in responses}
    _check(codes == {0}, f"statuses {sorted(codes)} in a batch update")

    async def operation(slot: int, number: int) -> None:
        request = updates.request(batches[number])
        answer = await stubs[slot % len(stubs)].batch_update(request)
        _check(len(answer) == len(expected), f"{len(answer)} bytes of {len(expected)}")

    return Prepared(operation, limit=len(batches))


_PREPARATIONS: dict[str, Callable[[Share, list[Stubs]], Awaitable[Prepared]]] = {
    "caps": _capabilities,
    "read": _read,
    "write": _write_new,
    "fmb": _find,
    "getac": _get_action,
    "updateac": _update_action,
    "batchread": _batch_read,
    "batchupdate": _batch_update,
}
