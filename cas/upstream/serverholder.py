"""Another server of REAPI as what lies upstream, over gRPC.

Rule: what is asked of it, in how few requests; how it is said is the client's (`cas.client`), and
patience is `trying`'s.  Whether blobs are there is asked for many at once, and small ones go and
come in batches, where several are wanted at a time.  What it cannot keep (a digest function that it
lacks, a blob that is too large for it) is neither asked of it nor sent to it.

What it sends is verified by who takes it.  Nothing there can be moved out of the way: what was
found to be wrong counts as absent here, for this process, until it was sent again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from functools import partial
from typing import NoReturn, TypeVar

from cas import digest as digests
from cas.client.compress import Decompressor
from cas.client.credentials import Credentials
from cas.client.errors import (
    PermissionDenied,
    RemoteError,
    Unauthenticated,
    Unavailable,
    Unsupported,
)
from cas.client.overgrpc import GrpcWire
from cas.client.remote import Remote, parse
from cas.client.wire import Offer, Parcel
from cas.digest import BY_NAME, SHA256, Digest
from cas.errors import CasError, ConfigError, DataLoss, LimitExceeded, NotFound
from cas.errors import Unavailable as NotHeardOf
from cas.pb import remote_execution_pb2 as pb
from cas.upstream.gathering import Gathered
from cas.upstream.holder import Parts
from cas.upstream.identity import FileIdentity, Files, check_pem
from cas.upstream.memory import Latest
from cas.upstream.nodes import Nodes
from cas.upstream.objects import Absent, Broken, Denied, Refused
from cas.upstream.trying import Trying

T = TypeVar("T")

FIND_BLOBS = 4_000
"""Digests in one FindMissingBlobs: about 300 KiB, where gRPC takes 4 MiB."""
BATCH = 1 << 20
"""Bytes of one batch, if the server takes as many, …"""
SLOWEST = 128 << 10
"""… for which it is given this much more time: bytes a second."""
BATCHED = 256 << 10
"""Blobs up to this size, bytes, go and come in batches."""
BLOB_COST = 160
"""Bytes of a message that a blob takes besides its own."""
JOINED = 512 << 10
"""Bytes in which a stream is handed on, at least, but for its ends."""
OFFER_SECONDS = 600.0
"""For which its capabilities are believed while it answers."""
SIZES = 50_000
"""Blobs whose sizes are remembered, for those who ask by a hash alone."""
BAD = 10_000
"""Blobs that are remembered to be wrong there."""

log = logging.getLogger("cas.upstream")


def connect(
    url: str, files: Files, instance: str | None, nodes: Nodes | None = None
) -> Callable[[Trying], ServerHolder]:
    """What makes a holder of the server at `url`; nothing is asked yet.  `nodes` are told to it.

    Blobs lie in the URL's instance, action results in that of the same name here, below the URL's;
    all of them in `instance`, where one is given.  Raises ConfigError.
    """
    remote = parse(url)
    if remote.http or remote.user or remote.password:
        raise ConfigError(f"upstream {remote}: expected grpc://, grpcs:// or unix:, without a user")
    check_pem(files)
    if files.key is not None and not remote.tls:
        raise ConfigError(f"upstream {remote}: certificates need grpcs://")
    identity = FileIdentity(files, remote, nodes)
    if not (remote.tls or remote.local) and (files.token or files.login or files.helper):
        log.warning("credentials go upstream unencrypted", extra={"upstream": str(remote)})

    def make(trying: Trying) -> ServerHolder:
        return ServerHolder(remote, files, identity, instance, trying)

    return make


class ServerHolder:
    """See `holder.Holder`."""

    one_by_one = False

    def __init__(
        self,
        remote: Remote,
        files: Files,
        identity: FileIdentity,
        instance: str | None,
        trying: Trying,
    ) -> None:
        """On the loop that it is used on."""
        self.trying = trying
        self._remote = remote
        self._one_instance = instance
        if instance is not None:
            remote = replace(remote, instance=instance)
        credentials = Credentials(ca=files.ca, certificate=files.certificate, key=files.key)
        self._base = remote.instance
        self._wire = GrpcWire(remote, credentials, identity)
        # Between two processes of one machine compressing costs more than it saves.
        self._zstd = not remote.local
        self._offer: Offer | None = None
        self._functions: frozenset[int] = frozenset()
        self._offer_until = 0.0
        self._offering: asyncio.Task[Offer] | None = None
        self._sizes: Latest[Digest] = Latest(SIZES)
        self._bad: Latest[None] = Latest(BAD)
        self._is_denied = False
        self._batches = True
        self._finding: Gathered[Digest, bool] = Gathered(
            self._find_missing, kind=_function, cost=lambda _: 1, most=FIND_BLOBS
        )
        self._reading: Gathered[Digest, bytes] = Gathered(
            self._read_many, kind=_function, cost=_cost, most=BATCH
        )
        self._writing: Gathered[tuple[Digest, bytes], None] = Gathered(
            self._write_many, kind=lambda one: _function(one[0]), cost=lambda one: _cost(one[0]),
            most=BATCH,
        )  # fmt: skip
        trying.returned = self._ask_again
        self._ask_again()

    def name(self, digest: Digest, /) -> str:
        return f"blob {digest} of {self._remote}"

    # --- what it can do

    def _ask_again(self) -> None:
        if self._offering is None or self._offering.done():
            self._offering = asyncio.get_running_loop().create_task(self._ask_offer())
            # Whoever needs it hears of its failure.
            self._offering.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def _ask_offer(self) -> Offer:
        try:
            offer = await self._ask("capabilities", self._wire.offer)
        except _Unserved:
            # Nothing is known of it but that it answers.
            offer = Offer()
        functions = frozenset(
            function.code
            for number in offer.functions
            if number in pb.DigestFunction.Value.values()
            and (function := BY_NAME.get(pb.DigestFunction.Value.Name(number).lower()))
        )
        self._functions = functions or frozenset((SHA256.code,))
        if offer != self._offer:
            log.info(
                "upstream tells what it can do",
                extra={
                    "upstream": str(self._remote),
                    "api": offer.api,
                    "digest_functions": sorted(
                        name for name, one in BY_NAME.items() if one.code in self._functions
                    ),
                    "batch_bytes": offer.batch,
                    "zstd": offer.zstd,
                    "takes_action_results": offer.writes_actions,
                },
            )
        self._offer = offer
        self._offer_until = asyncio.get_running_loop().time() + OFFER_SECONDS
        return offer

    async def _offered(self) -> Offer:
        """Raises Unavailable."""
        offer = self._offer
        if offer is None or asyncio.get_running_loop().time() >= self._offer_until:
            self._ask_again()
        if offer is None:
            assert self._offering is not None
            offer = await asyncio.shield(self._offering)
        return offer

    async def takes(self, digest: Digest, /) -> bool:
        offer = await self._offered()
        return digest.function.code in self._functions and (
            not offer.largest or digest.size <= offer.largest
        )

    # --- existence

    async def has(self, digest: Digest, /) -> bool:
        if not await self.takes(digest) or digest.key in self._bad:
            return False
        return await self._patient(partial(self._finding, digest))

    async def present(self, digests: Sequence[Digest], /) -> dict[bytes, bool]:
        with suppress(NotHeardOf):
            await self._offered()
            alike: dict[int, list[Digest]] = {}
            for digest in digests:
                alike.setdefault(digest.function.code, []).append(digest)
            chunks = [
                some[at : at + FIND_BLOBS]
                for some in alike.values()
                for at in range(0, len(some), FIND_BLOBS)
            ]
            answers = await asyncio.gather(*map(self._present, chunks), return_exceptions=True)
            told: dict[bytes, bool] = {}
            for chunk, answer in zip(chunks, answers, strict=True):
                if isinstance(answer, list):
                    told.update(zip((digest.key for digest in chunk), answer, strict=True))
                elif not isinstance(answer, NotHeardOf):
                    raise answer
            return told
        return {}

    async def _present(self, digests: list[Digest]) -> list[bool]:
        """Of digests of one function, few enough for a request."""
        if digests[0].function.code not in self._functions:
            return [False] * len(digests)
        there = await self._find_missing(digests)
        return [
            found and digest.key not in self._bad
            for digest, found in zip(digests, there, strict=True)
        ]

    async def _find_missing(self, digests: list[Digest]) -> list[bool]:
        try:
            missing = await self._ask("head", lambda: self._wire.find_missing(digests))
        except Absent as error:
            # The instance, or so it says.
            raise NotHeardOf(f"upstream fails: {error}") from error
        absent = {digest.key for digest in missing}
        for digest in digests:
            if digest.key not in absent:
                self._sizes.add(digest.key[: 1 + digest.function.length], digest)
        return [digest.key not in absent for digest in digests]

    async def find(self, prefix: bytes, /) -> Digest | None:
        # REAPI names no blob without its size: those of action results that were looked into are
        # known.
        digest = self._sizes.get(prefix)
        return digest if digest is not None and await self.has(digest) else None

    # --- reads

    async def coming(self, digest: Digest, start: int, /) -> tuple[int, AsyncIterator[bytes]]:
        if not await self.takes(digest) or digest.key in self._bad:
            raise Absent(self.name(digest))
        if not start and await self._goes_in_batches(digest):
            with suppress(_Unserved):
                data = await self._patient(partial(self._reading, digest))
                if len(data) != digest.size:
                    await self._is_wrong(digest, len(data))
                return digest.size, _one(data)
            self._batches = False
        messages = await self._ask("get", lambda: self._opened(digest, start))
        return digest.size, self._counted(digest, start, self.trying.pieces(messages))

    async def part(self, digest: Digest, start: int, end: int, /) -> bytes:
        async def get() -> bytes:
            pieces = self._wire.read(digest, start, False, end - start)
            async with aclosing(pieces):
                data = b"".join([piece async for piece, _ in pieces])
            if len(data) != end - start:
                raise Unavailable(f"{len(data)} bytes came, not {end - start}")
            return data

        return await self._ask("get", get)

    async def _opened(self, digest: Digest, start: int) -> AsyncIterator[bytes]:
        """The content from there on, once some of it has come."""
        zstd = self._zstd and (await self._offered()).zstd
        content = self._content(digest, start, zstd)
        first = await anext(content, b"")
        return _resumed(first, content)

    async def _content(self, digest: Digest, start: int, zstd: bool) -> AsyncIterator[bytes]:
        decoder = Decompressor(digest.size - start)
        messages = self._wire.read(digest, start, zstd)
        async with aclosing(messages):
            async for data, packed in messages:
                if not packed:
                    yield bytes(data)
                    continue
                try:
                    for piece in decoder.feed(data):
                        yield piece
                except RemoteError as error:
                    log.warning("upstream's zstd is of no use; it goes plainly from now on",
                                extra={"error": str(error)})  # fmt: skip
                    self._zstd = False
                    raise Unavailable(str(error)) from None

    async def _counted(
        self, digest: Digest, start: int, messages: AsyncIterator[bytes]
    ) -> AsyncIterator[bytes]:
        """The messages joined into pieces, of as many bytes as the digest says."""
        offset = start
        held: list[bytes] = []
        size = 0
        try:
            async for message in messages:
                offset += len(message)
                if offset > digest.size:
                    break
                held.append(message)
                size += len(message)
                # Readers wait for the first of them.
                if size >= JOINED or offset == start + len(message):
                    yield b"".join(held)
                    held, size = [], 0
        except (Absent, Refused) as error:
            raise Broken(str(error)) from error
        if offset != digest.size:
            await self._is_wrong(digest, offset)
        if held:
            yield b"".join(held)

    async def _is_wrong(self, digest: Digest, size: int) -> NoReturn:
        self.trying.counts.bad.add()
        await self.condemn(digest)
        raise DataLoss(f"{self.name(digest)} is damaged: {size} bytes or more came")

    async def _goes_in_batches(self, digest: Digest) -> bool:
        most = min((await self._offered()).batch, BATCH)
        return self._batches and digest.size <= BATCHED and _cost(digest) <= most

    async def _read_many(self, digests: list[Digest]) -> list[bytes | Exception]:
        answers = await self._ask(
            "get", lambda: self._wire.read_many(digests, False), size=sum(map(_cost, digests))
        )
        return [
            answer.data if isinstance(answer, Parcel) else _translated(answer) for answer in answers
        ]

    # --- writes

    async def put(self, digest: Digest, data: bytes, /) -> None:
        if await self._goes_in_batches(digest):
            try:
                await self._patient(partial(self._writing, (digest, data)))
            except _Unserved:
                self._batches = False
            else:
                self._was_put(digest)
                return
        await self.put_parts(digest, partial(_parts_of, data))

    async def put_parts(self, digest: Digest, parts: Parts, /) -> None:
        name = self._wire.upload_name(digest, False)
        offset = attempt = 0
        while True:
            try:
                write = partial(self._write, digest, name, offset, parts)
                await self.trying.once("put", partial(_answer, write, writes=True), seconds=0)
                break
            except Denied as error:
                if not offset:
                    await self._retry(attempt, error)
                # It will not go on from there.
                name, offset = self._wire.upload_name(digest, False), 0
            except (Broken, Refused) as error:
                await self._retry(attempt, error)
                reached = await self._ask("put", partial(self._wire.committed, name), writes=True)
                if reached >= digest.size:
                    break
                if reached > offset:
                    attempt = -1
                elif not reached:
                    name = self._wire.upload_name(digest, False)
                offset = reached
            attempt += 1
        self._was_put(digest)

    async def _write(self, digest: Digest, name: str, offset: int, parts: Parts) -> None:
        now = asyncio.get_running_loop().time
        pieces = parts(offset)
        async with asyncio.timeout(self.trying.timeout) as limit:

            async def pull() -> bytes:
                # What was pulled before has gone.
                limit.reschedule(now() + self.trying.timeout)
                return await anext(pieces, b"")

            size = await self._wire.write(digest, name, offset, pull, False)
        if 0 <= size < digest.size:
            raise Unavailable(f"it kept {size} of {digest.size} bytes")

    async def _write_many(self, blobs: list[tuple[Digest, bytes]]) -> list[Exception | None]:
        parcels = [Parcel(digest, data) for digest, data in blobs]
        answers = await self._ask(
            "put",
            lambda: self._wire.write_many(parcels),
            size=sum(_cost(digest) for digest, _ in blobs),
            writes=True,
        )
        return [answer and _translated(answer, writes=True) for answer in answers]

    def _was_put(self, digest: Digest) -> None:
        self._bad.discard(digest.key)
        self._is_denied = False

    # --- action results

    async def action(self, instance: str, digest: Digest, most: int, /) -> bytes | None:
        if not await self.takes(digest):
            raise Absent(f"action {digest}")
        where, named = self._instance(instance), _with_size(digest)
        found = await self._ask("get", lambda: self._wire.get_action_bytes(where, named))
        if found is None:
            raise Absent(f"action {digest}")
        return found if len(found) <= most else None

    async def put_action(self, instance: str, digest: Digest, result: bytes, /) -> None:
        if not (await self._offered()).writes_actions:
            error = _NoWrites("it takes no action results from this node (update_enabled is false)")
            await self._retry(0, error)
        where, named = self._instance(instance), _with_size(digest)

        async def put() -> None:
            await self._wire.put_action_bytes(where, named, result)

        await self._ask("put", put, writes=True)

    def _instance(self, instance: str) -> str:
        if self._one_instance is not None:
            return self._one_instance
        return "/".join(filter(None, (self._base, instance)))

    # --- the rest

    async def condemn(self, digest: Digest, /) -> None:
        log.error(
            "a blob upstream is damaged, and cannot be moved away there",
            extra={"digest": str(digest), "upstream": str(self._remote)},
        )
        self._bad.add(digest.key, None)

    async def close(self) -> None:
        if self._offering is not None:
            self._offering.cancel()
        await self._wire.close()

    async def _ask(
        self,
        operation: str,
        make: Callable[[], Awaitable[T]],
        *,
        size: int = 0,
        writes: bool = False,
    ) -> T:
        """An answer; `size` bytes go or come with it.  Raises Absent, Unavailable, DataLoss."""
        seconds = self.trying.timeout + size / SLOWEST
        work = partial(_answer, make, writes=writes)
        try:
            return await self.trying.ask(operation, work, seconds)
        except NotHeardOf as error:
            if isinstance(error.__cause__, _Unserved):
                raise error.__cause__ from None
            self._tell_denied(error.__cause__)
            raise

    async def _patient(self, work: Callable[[], Awaitable[T]]) -> T:
        """`work`, of many together, again where it failed for this one alone."""
        attempt = 0
        while True:
            try:
                return await work()
            except _Unserved:
                raise
            except (Broken, Refused) as error:
                await self._retry(attempt, error)
                attempt += 1

    async def _retry(self, attempt: int, error: Broken | Refused) -> None:
        self._tell_denied(error)
        await self.trying.retry(attempt, error)

    def _tell_denied(self, error: BaseException | None) -> None:
        if isinstance(error, _NoWrites) and not self._is_denied:
            self._is_denied = True
            log.error(
                "upstream refuses what is written; upstream_writes = none keeps it here",
                extra={"error": str(error)},
            )


class _Unserved(Denied):
    """It has no such method."""


class _NoWrites(Denied):
    """This node may not write there."""


async def _answer(make: Callable[[], Awaitable[T]], *, writes: bool = False) -> T:
    try:
        return await make()
    except CasError as error:
        raise _translated(error, writes=writes) from error


def _translated(error: CasError, *, writes: bool = False) -> Exception:
    """What the client says as what `trying` knows."""
    said = str(error)
    if isinstance(error, DataLoss):
        return error
    if isinstance(error, Unavailable):
        return Broken(said)
    if isinstance(error, NotFound) and not writes:
        return Absent(said)
    if isinstance(error, Unauthenticated):
        return Refused(said)
    if isinstance(error, PermissionDenied):
        return _NoWrites(said) if writes else Refused(said)
    if isinstance(error, LimitExceeded) and not writes:
        # A precondition of all that is asked: the node that asks is its own upstream.
        return Refused(said)
    if isinstance(error, Unsupported):
        return _Unserved(said)
    return Denied(said)


def _with_size(action: Digest) -> Digest:
    """An action whose size nobody knows has one byte: bazel-remote refuses 0, and counts only the
    hash; whoever counts both finds what was kept by the same guess."""
    if action.size or action == digests.empty(action.function):
        return action
    return digests.make(action.function, action.hash, 1)


def _function(digest: Digest) -> int:
    return digest.key[0]


def _cost(digest: Digest) -> int:
    return digest.size + BLOB_COST


async def _one(data: bytes) -> AsyncIterator[bytes]:
    if data:
        yield data


async def _resumed(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    if first:
        yield first
        try:
            async for piece in rest:
                yield piece
        except CasError as error:
            raise _translated(error) from error


async def _parts_of(data: bytes, start: int) -> AsyncGenerator[bytes, None]:
    for at in range(start, len(data), 1 << 20):
        yield data[at : at + (1 << 20)]
