"""One client: writes and reads at random, and judges every answer.

Rule: an error that a killed server explains is counted and forgotten; any other is a fault.  What
was acknowledged must be found, with its bytes, at any later moment.
"""

from __future__ import annotations

import hashlib
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import grpc

from cas.pb import bytestream_pb2 as bs
from cas.pb import remote_execution_pb2 as pb
from tests.conformance.client import Client
from tests.torture.journal import SMALL, Blob, Journal

KIB, MIB = 1 << 10, 1 << 20

TIMEOUT = 60.0
"""Seconds for one call: no call may hang, whatever is killed."""

EXPLAINED = frozenset(
    (
        grpc.StatusCode.UNAVAILABLE,  # the process is gone, or not there yet
        grpc.StatusCode.CANCELLED,  # it went while the call ran
        grpc.StatusCode.ABORTED,  # another stream of this client took the upload over
    )
)

RECONNECT = (
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 500),
)


@dataclass(slots=True)
class Pace:
    """What all clients share: when to stop, and what they may have acknowledged by now.

    That grows with the part of the run that is over, so that blobs of each size are written until
    the end.  Who is ahead writes action results, and reads.
    """

    stop: threading.Event
    large_bytes: int
    """Room of blobs beyond `SMALL` that may be acknowledged in the whole run, …"""
    small_bytes: int
    """… and of smaller ones."""
    seconds: float
    """How long the run lasts, …"""
    kills: int = 0
    """… and how many kills at least."""
    killed: int = 0
    """So far."""
    clock: Callable[[], float] = time.monotonic
    began: float = field(init=False)

    def __post_init__(self) -> None:
        self.began = self.clock()

    def part(self) -> float:
        """How much of the run is over, 0 to 1."""
        over = (self.clock() - self.began) / self.seconds if self.seconds else 1.0
        if self.kills:
            # The next one is under way.
            over = min(over, (self.killed + 1) / self.kills)
        return min(1.0, over)

    def takes_large(self, journal: Journal) -> bool:
        return journal.large_room <= self.large_bytes * self.part()

    def takes_small(self, journal: Journal) -> bool:
        return journal.small_room <= self.small_bytes * self.part()


class Worker:
    """One client's thread."""

    def __init__(self, number: int, address: str, journal: Journal, pace: Pace) -> None:
        self._journal = journal
        self._pace = pace
        self._dice = random.Random(f"{journal.seed}/client/{number}")
        self._client = Client(address, *RECONNECT)
        self._writes = [self.put_batch, self.upload, self.upload, self.write_action]
        self._reads = [self.read, self.read, self.read_batch, self.find, self.read_action]

    def run(self) -> None:
        with self._client:
            while not self._pace.stop.is_set():
                self._attempt(self._dice.choice(self._choices()))

    def _choices(self) -> list[Callable[[], None]]:
        if self._dice.random() < 0.5:
            return self._reads
        pace, journal = self._pace, self._journal
        if pace.takes_large(journal) or pace.takes_small(journal):
            return self._writes
        return [self.write_action]

    def _attempt(self, operation: Callable[[], None]) -> None:
        name = operation.__name__
        began = time.monotonic()
        try:
            operation()
            self._journal.did(name)
        except grpc.RpcError as error:
            code = error.code()
            if code in EXPLAINED or _broken_off(error):
                self._journal.did(f"{name} broken off")
                # A killed server takes a moment to come back.
                self._pace.stop.wait(self._dice.uniform(0.02, 0.2))
            else:
                took = time.monotonic() - began
                text = f"{name}: {code.name} after {took:.1f} s: {error.details()}"
                self._journal.fault(self._journal.unexpected, text)

    # --- writes ------------------------------------------------------------------------

    def _size(self) -> int:
        if not self._pace.takes_large(self._journal):
            return self._dice.randint(8, SMALL)
        kind = self._dice.random()
        if kind < 0.7:
            return self._dice.randint(8, 16 * KIB)
        if kind < 0.97:
            return self._dice.randint(16 * KIB, 200 * KIB)
        return self._dice.randint(200 * KIB, 4 * MIB)

    def put_batch(self) -> None:
        made = [
            self._journal.make(min(self._size(), 100 * KIB))
            for _ in range(self._dice.randint(1, 20))
        ]
        request = pb.BatchUpdateBlobsRequest(
            requests=[
                pb.BatchUpdateBlobsRequest.Request(digest=blob.digest, data=data)
                for blob, data in made
            ]
        )
        response = self._client.batch_update_blobs(request, timeout=TIMEOUT)
        for (blob, _), answer in zip(made, response.responses, strict=True):
            if answer.status.code == 0:
                self._journal.acknowledged(blob)
            elif answer.status.code != grpc.StatusCode.UNAVAILABLE.value[0]:
                self._journal.fault(self._journal.unexpected, f"put_batch: {answer.status}")

    def upload(self) -> None:
        """One blob by ByteStream; resumed where the server says, until it is there."""
        blob, data = self._journal.make(self._size())
        name = f"uploads/{uuid.UUID(int=self._dice.getrandbits(128))}/{blob.name}"
        step = self._dice.choice((16 * KIB, 64 * KIB, MIB))
        told = 0
        for _ in range(200):
            pauses = self._dice.random() < 0.2
            try:
                size, complete = self._committed(name)
                if size < told:
                    text = f"upload of {blob.hash} had {told}, has {size}"
                    self._journal.fault(self._journal.lost, text)
                    return
                # An upload that is whole still wants its last message.
                told = size if complete else self._send(name, data, size, step, pauses=pauses)
                if complete or not pauses:
                    self._journal.acknowledged(blob)
                    return
            except grpc.RpcError as error:
                if error.code() not in EXPLAINED and not _broken_off(error):
                    raise
                self._journal.did("upload resumed")
                if self._pace.stop.wait(self._dice.uniform(0.02, 0.3)):
                    return

    def _committed(self, name: str) -> tuple[int, bool]:
        try:
            response = self._client._query(
                bs.QueryWriteStatusRequest(resource_name=name), timeout=TIMEOUT
            )
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return 0, False
            raise
        return response.committed_size, response.complete

    def _send(self, name: str, data: bytes, at: int, step: int, *, pauses: bool) -> int:
        end = self._dice.randint(at, len(data)) if pauses else len(data)

        def messages() -> Iterator[bs.WriteRequest]:
            offset, resource = at, name
            while True:
                stop = min(offset + step, end)
                yield bs.WriteRequest(
                    resource_name=resource,
                    write_offset=offset,
                    data=data[offset:stop],
                    finish_write=stop == end and not pauses,
                )
                if stop == end:
                    return
                offset, resource = stop, ""

        response = self._client._write(messages(), timeout=TIMEOUT)
        committed: int = response.committed_size
        return committed

    def write_action(self) -> None:
        outputs = self._some(3)
        if not outputs:
            return
        # Few actions, written again and again; each by one client only at a time.
        key = f"{self._journal.seed}/{threading.get_ident()}/{self._dice.randrange(50)}".encode()
        digest = pb.Digest(hash=hashlib.sha256(key).hexdigest(), size_bytes=len(key))
        result = pb.ActionResult(
            output_files=[
                pb.OutputFile(path=f"out/{blob.number}", digest=blob.digest) for blob in outputs
            ],
            exit_code=self._dice.randrange(100),
        )
        request = pb.UpdateActionResultRequest(action_digest=digest, action_result=result)
        try:
            self._client.update_action_result(request, timeout=TIMEOUT)
        except grpc.RpcError:
            # Either the earlier or this one may be kept: nobody knows.
            self._journal.actions.pop(digest.hash, None)
            raise
        self._journal.action(digest, result)

    # --- reads -------------------------------------------------------------------------

    def _some(self, count: int) -> list[Blob]:
        blobs = self._journal.blobs
        known = len(blobs)
        if not known:
            return []
        # What was written just now, and anything.
        places = (
            known - 1 - min(known - 1, int(self._dice.expovariate(1 / 20)))
            if self._dice.random() < 0.5
            else self._dice.randrange(known)
            for _ in range(count)
        )
        return [blobs[place] for place in places]

    def read(self) -> None:
        for blob in self._some(1):
            try:
                data = b"".join(
                    part.data
                    for part in self._client._read(
                        bs.ReadRequest(resource_name=blob.name), timeout=TIMEOUT
                    )
                )
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.NOT_FOUND:
                    raise
                self._journal.fault(self._journal.lost, f"read: {blob.hash}: {error.details()}")
                return
            self._compare(blob, data)

    def _compare(self, blob: Blob, data: bytes) -> None:
        if data != self._journal.data(blob.number, blob.size):
            self._journal.fault(self._journal.wrong, f"{blob.hash}/{blob.size}: {len(data)} bytes")

    def read_batch(self) -> None:
        blobs = {blob.hash: blob for blob in self._some(10) if blob.size < 200 * KIB}
        request = pb.BatchReadBlobsRequest(digests=[blob.digest for blob in blobs.values()])
        for answer in self._client.batch_read_blobs(request, timeout=TIMEOUT).responses:
            if answer.status.code == grpc.StatusCode.NOT_FOUND.value[0]:
                self._journal.fault(self._journal.lost, f"read_batch: {answer.digest.hash}")
            elif answer.status.code:
                self._journal.fault(self._journal.unexpected, f"read_batch: {answer.status}")
            else:
                self._compare(blobs[answer.digest.hash], answer.data)

    def find(self) -> None:
        request = pb.FindMissingBlobsRequest(blob_digests=[blob.digest for blob in self._some(200)])
        for digest in self._client.find_missing_blobs(
            request, timeout=TIMEOUT
        ).missing_blob_digests:
            self._journal.fault(self._journal.lost, f"find: {digest.hash}")

    def read_action(self) -> None:
        """Only what this thread wrote itself can be expected to be as it was."""
        prefix = f"{self._journal.seed}/{threading.get_ident()}/{self._dice.randrange(50)}".encode()
        known = self._journal.actions.get(hashlib.sha256(prefix).hexdigest())
        if known is not None:
            check_action(self._client, self._journal, *known)


def check_action(
    client: Client, journal: Journal, digest: pb.Digest, expected: pb.ActionResult
) -> None:
    """Reads an acknowledged action result and compares it."""
    request = pb.GetActionResultRequest(action_digest=digest)
    try:
        found = client.get_action_result(request, timeout=TIMEOUT)
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.NOT_FOUND:
            raise
        journal.fault(journal.lost, f"action {digest.hash}")
        return
    if found != expected:
        journal.fault(journal.wrong, f"action {digest.hash}")


def _broken_off(error: grpc.RpcError) -> bool:
    """Whether the transport broke under the call: the client's words for it vary."""
    code, details = error.code(), (error.details() or "").lower()
    return code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN) and (
        "rst_stream" in details or "stream removed" in details or "goaway" in details
    )
