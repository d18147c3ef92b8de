"""Another server of REAPI as what lies upstream, over gRPC.

Rule: what is asked of it, in how few requests; how it is said is the client's (`cas.client`), and
patience is `trying`'s.  Whether blobs are there is asked for many at once; how their bytes come and
go is `serverreads`' and `serverwrites`'.  What it cannot keep (a digest function that it lacks, a
blob that is too large for it: `serveroffer`) is neither asked of it nor sent to it.

What it sends is verified by who takes it.  Nothing there can be moved out of the way: what was
found to be wrong counts as absent here, for this process, until it was sent again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import NoReturn

from cas import digest as digests
from cas.client.credentials import Credentials
from cas.client.overgrpc import GrpcWire
from cas.client.remote import Remote, parse
from cas.digest import Digest
from cas.errors import ConfigError, DataLoss
from cas.errors import Unavailable as NotHeardOf
from cas.upstream.gathering import Gathered
from cas.upstream.holder import Parts
from cas.upstream.identity import FileIdentity, Files, check_pem
from cas.upstream.memory import Latest
from cas.upstream.nodes import Nodes
from cas.upstream.objects import Absent
from cas.upstream.servercalls import Calls, NoWrites
from cas.upstream.serveroffer import Offered
from cas.upstream.serverreads import Reads
from cas.upstream.serverwrites import Writes
from cas.upstream.trying import Trying

FIND_BLOBS = 4_000
"""Digests in one FindMissingBlobs: about 300 KiB, where gRPC takes 4 MiB."""
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
        self._calls = Calls(trying)
        self._offered = Offered(self._wire, self._calls, self._remote)
        # Between two processes of one machine compressing costs more than it saves.
        zstd = not remote.local
        self._reads = Reads(self._wire, self._calls, self._offered, self._is_wrong, zstd=zstd)
        self._writes = Writes(self._wire, self._calls, self._offered)
        self._sizes: Latest[Digest] = Latest(SIZES)
        self._bad: Latest[None] = Latest(BAD)
        self._finding: Gathered[Digest, bool] = Gathered(
            self._find_missing,
            kind=lambda digest: digest.function.code,
            cost=lambda _: 1,
            most=FIND_BLOBS,
        )

    def name(self, digest: Digest, /) -> str:
        return f"blob {digest} of {self._remote}"

    async def takes(self, digest: Digest, /) -> bool:
        return await self._offered.takes(digest)

    # --- existence

    async def has(self, digest: Digest, /) -> bool:
        if not await self.takes(digest) or digest.key in self._bad:
            return False
        return await self._calls.patient(partial(self._finding, digest))

    async def present(self, digests: Sequence[Digest], /) -> dict[bytes, bool]:
        with suppress(NotHeardOf):
            await self._offered.offer()
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
        if digests[0].function.code not in self._offered.functions:
            return [False] * len(digests)
        there = await self._find_missing(digests)
        return [
            found and digest.key not in self._bad
            for digest, found in zip(digests, there, strict=True)
        ]

    async def _find_missing(self, digests: list[Digest]) -> list[bool]:
        try:
            missing = await self._calls.ask("head", lambda: self._wire.find_missing(digests))
        except Absent as error:
            # The instance, or so it says.
            raise NotHeardOf(f"upstream fails: {error}") from error
        absent = {digest.key for digest in missing}
        for digest in digests:
            if digest.key not in absent:
                self._sizes.add(digest.prefix, digest)
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
        return await self._reads.coming(digest, start)

    async def part(self, digest: Digest, start: int, end: int, /) -> bytes:
        return await self._reads.part(digest, start, end)

    async def condemn(self, digest: Digest, /) -> None:
        log.error(
            "a blob upstream is damaged, and cannot be moved away there",
            extra={"digest": str(digest), "upstream": str(self._remote)},
        )
        self._bad.add(digest.key, None)

    async def _is_wrong(self, digest: Digest, size: int) -> NoReturn:
        self.trying.counts.bad.add()
        await self.condemn(digest)
        raise DataLoss(f"{self.name(digest)} is damaged: {size} bytes or more came")

    # --- writes

    async def put(self, digest: Digest, data: bytes, /) -> None:
        await self._writes.put(digest, data)
        self._bad.discard(digest.key)

    async def put_parts(self, digest: Digest, parts: Parts, /) -> None:
        await self._writes.put_parts(digest, parts)
        self._bad.discard(digest.key)

    # --- action results

    async def action(self, instance: str, digest: Digest, most: int, /) -> bytes | None:
        if not await self.takes(digest):
            raise Absent(f"action {digest}")
        where, named = self._instance(instance), _with_size(digest)
        found = await self._calls.ask("get", lambda: self._wire.get_action_bytes(where, named))
        if found is None:
            raise Absent(f"action {digest}")
        return found if len(found) <= most else None

    async def put_action(self, instance: str, digest: Digest, result: bytes, /) -> None:
        if not (await self._offered.offer()).writes_actions:
            error = NoWrites("it takes no action results from this node (update_enabled is false)")
            await self._calls.retry(0, error)
        where, named = self._instance(instance), _with_size(digest)

        async def put() -> None:
            await self._wire.put_action_bytes(where, named, result)

        await self._calls.ask("put", put, writes=True)

    def _instance(self, instance: str) -> str:
        if self._one_instance is not None:
            return self._one_instance
        return "/".join(filter(None, (self._base, instance)))

    async def close(self) -> None:
        self._offered.close()
        await self._wire.close()


def _with_size(action: Digest) -> Digest:
    """An action whose size nobody knows has one byte: bazel-remote refuses 0, and counts only the
    hash; whoever counts both finds what was kept by the same guess."""
    if action.size or action == digests.empty(action.function):
        return action
    return digests.make(action.function, action.hash, 1)
