"""ContentAddressableStorage: which blobs are here, and many small ones in one message.

Rule: REAPI's comments on the service; each blob of a batch has its own status, and one bad
blob never fails the others.  Streams are `bytestream`'s.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from typing import TYPE_CHECKING

import grpc
from google.protobuf.message import DecodeError

from cas import digest as digests
from cas.api import compressed, names, status, wire
from cas.api.gate import Gate
from cas.api.limits import Limits
from cas.api.status import guarded
from cas.digest import Digest, shorten
from cas.errors import CasError, InvalidArgument, NotFound
from cas.pb import remote_execution_pb2 as pb
from cas.reapi.blobs import lacking, put, read_whole
from cas.store.interface import BlobStore
from cas.store.pending import Pending, resolved
from cas.zstd import Packer

if TYPE_CHECKING:
    from cas.rpc.handler import Context, Runtime

SERVICE = "build.bazel.remote.execution.v2.ContentAddressableStorage"

_HERE = resolved(None)
"""The outcome of writing what is here already."""

TREE_PAGE = 1000
"""Directories in one GetTreeResponse at most."""


class Content:
    """The servicer.  All but GetTree take and give raw messages."""

    def __init__(
        self, store: BlobStore, runtime: Runtime, limits: Limits, gate: Gate | None = None
    ) -> None:
        self._store = store
        self._runtime = runtime
        self._limits = limits
        self._gate = gate
        self._packer = Packer()

    def handler(self) -> grpc.GenericRpcHandler:
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "FindMissingBlobs": grpc.unary_unary_rpc_method_handler(
                    guarded(self.find_missing, self._gate)
                ),
                "BatchUpdateBlobs": grpc.unary_unary_rpc_method_handler(
                    guarded(self.batch_update, self._gate)
                ),
                "BatchReadBlobs": grpc.unary_unary_rpc_method_handler(
                    guarded(self.batch_read, self._gate)
                ),
                "GetTree": grpc.unary_stream_rpc_method_handler(
                    guarded(self.get_tree, self._gate),
                    request_deserializer=pb.GetTreeRequest.FromString,
                    response_serializer=pb.GetTreeResponse.SerializeToString,
                ),
            },
        )

    async def find_missing(self, request: bytes, context: Context) -> bytes:
        asked = wire.find_missing_request(request, self._limits.functions)
        context.instance = names.check_instance(asked.instance_name)
        if self._gate is not None:
            self._gate.read(context)
        missing = self._store.find_missing(asked.keys)
        beyond = self._store.beyond
        if missing and beyond is not None:
            lacking = [asked.keys[position] for position in missing]
            there = await self._runtime.wait(beyond.present(lacking))
            missing = [position for position in missing if asked.keys[position] not in there]
        return wire.find_missing_response(asked, missing)

    # --- BatchUpdateBlobs ------------------------------------------------------------

    async def batch_update(self, request: bytes, context: Context) -> bytes:
        batch = wire.batch_update_request(request, self._limits.functions)
        context.instance = names.check_instance(batch.instance_name)
        self._limits.check_batch(sum([len(data) for _, data, _ in batch.blobs]), "request")
        if self._gate is not None and not self._gate.keeps(context):
            return wire.batch_update_response([(raw, status.OK, "") for raw, _, _ in batch.blobs])
        if any([blob[2] for blob in batch.blobs]):  # noqa: C419 - a list takes half the time
            self._limits.check_batch(compressed.batch_bytes(batch), "request")
            batch = await self._runtime.offload(compressed.unpack_batch, batch)
        outcomes: list[CasError | Pending[None]] = []
        todo: list[tuple[Digest, memoryview]] = []
        for key, (_, data, _) in zip(batch.keys, batch.blobs, strict=True):
            try:
                todo.append((self._admit(key, len(data)), data))
                outcomes.append(_HERE)
            except CasError as error:
                outcomes.append(error)
        written = iter(await self._put(todo))
        results = []
        for outcome, (encoded, _, _) in zip(outcomes, batch.blobs, strict=True):
            final = next(written) if outcome is _HERE else outcome
            results.append((encoded, *await self._outcome(final)))
        return wire.batch_update_response(results)

    def _admit(self, key: bytes | CasError, size: int) -> Digest:
        """The digest to write; raises what its blob gets instead."""
        if isinstance(key, CasError):
            raise key
        # The key says what is expected, the size what came; the store compares all of it.
        digest = Digest(key, size)
        self._limits.check_blob(digest)
        return digest

    async def _put(self, blobs: Sequence[tuple[Digest, memoryview]]) -> list[Pending[None]]:
        """What is here already is not hashed or written again."""
        keys = [digest.key for digest, _ in blobs]
        missing = self._store.missing(keys)
        fresh = [blobs[place] for place in missing]
        threshold = self._store.inline_threshold
        if all(digest.size <= threshold for digest, _ in fresh):
            written = self._store.put(fresh)
        else:
            written = await put(self._store, self._runtime, fresh)
        here = _HERE
        if self._store.beyond is not None and len(fresh) < len(blobs):
            absent = {keys[place] for place in missing}
            here = self._store.beyond.keep([key for key in keys if key not in absent])
        out = [here] * len(blobs)
        for place, pending in zip(missing, written, strict=True):
            out[place] = pending
        return out

    async def _outcome(self, outcome: CasError | Pending[None]) -> tuple[int, str]:
        """A blob's status: code number and message."""
        error: Exception
        if isinstance(outcome, CasError):
            error = outcome
        else:
            try:
                if outcome.done:
                    outcome.result()
                else:
                    await self._runtime.wait(outcome)
            except (CasError, OSError) as failure:
                error = failure
            else:
                return status.OK, ""
        code, message = status.of(error)
        return status.number(code), message

    # --- BatchReadBlobs --------------------------------------------------------------

    async def batch_read(self, request: bytes, context: Context) -> bytes:
        batch = wire.batch_read_request(request, self._limits.functions)
        context.instance = names.check_instance(batch.instance_name)
        if self._gate is not None:
            self._gate.read(context)
        keys = [key for key in batch.keys if isinstance(key, bytes)]
        small = self._store.read_small_many(keys)
        sizes = [len(small[key]) if key in small else digests.from_key(key).size for key in keys]
        self._limits.check_batch(sum(sizes), "answer")
        if self._store.beyond is not None:
            self._bring(key for key in keys if key not in small)
        results = []
        for key, encoded in zip(batch.keys, batch.encoded, strict=True):
            data = small.get(key) if isinstance(key, bytes) else None
            if data is not None:
                results.append((encoded, data, status.OK, "", compressed.IDENTITY))
            else:
                results.append((encoded, *await self._read(key), compressed.IDENTITY))
        if compressed.ZSTD in batch.compressors:
            results = await self._runtime.offload(compressed.pack_batch, results, self._packer)
        return wire.batch_read_response(results)

    def _bring(self, keys: Iterable[bytes]) -> None:
        """Has those come together that are read one after the other."""
        assert self._store.beyond is not None
        wanted = [digests.from_key(key) for key in keys]
        self._store.beyond.bring([one for one in wanted if not self._store.contains(one)])

    async def _read(self, key: bytes | CasError) -> tuple[bytes, int, str]:
        """A blob that is not inline, or its error."""
        try:
            if isinstance(key, CasError):
                raise key
            data = await read_whole(self._store, self._runtime, digests.from_key(key))
        except (CasError, OSError) as error:
            code, message = status.of(error)
            return b"", status.number(code), message
        return data, status.OK, ""

    # --- GetTree ---------------------------------------------------------------------

    async def get_tree(self, request: pb.GetTreeRequest, context: Context) -> None:
        context.instance = names.check_instance(request.instance_name)
        if self._gate is not None:
            self._gate.read(context)
        among = self._limits.functions
        root = digests.parse(
            request.root_digest.hash,
            request.root_digest.size_bytes,
            among.of_number(request.digest_function),
            among,
        )
        skip = _page_offset(request.page_token)
        if request.page_size < 0:
            raise InvalidArgument(f"page_size is {request.page_size}, expected 0 or more")
        page_size = min(request.page_size or TREE_PAGE, TREE_PAGE)
        if not self._store.contains(root) and await lacking(self._store, self._runtime, [root.key]):
            raise NotFound(f"root directory {root} is not here")
        page = pb.GetTreeResponse()
        size = 0
        position = 0
        async for directory in self._walk(root):
            position += 1
            if position <= skip:
                continue
            bytes_more = directory.ByteSize() + 8
            if page.directories and (
                len(page.directories) >= page_size or size + bytes_more > self._limits.max_response
            ):
                page.next_page_token = str(position - 1)
                await context.write(page)
                page = pb.GetTreeResponse()
                size = 0
            page.directories.append(directory)
            size += bytes_more
        await context.write(page)

    async def _walk(self, root: Digest) -> AsyncIterator[pb.Directory]:
        """Every directory from `root` down, once, breadth first: an order that depends on
        the tree's content only, so that a page token is a count.  Absent ones are left out."""
        seen = {root.key}
        level = [root]
        while level:
            below: list[Digest] = []
            if self._store.beyond is not None:
                self._bring(digest.key for digest in level)
            for digest in level:
                try:
                    raw = await read_whole(self._store, self._runtime, digest)
                except NotFound:
                    continue
                try:
                    directory = pb.Directory.FromString(raw)
                except DecodeError:
                    raise InvalidArgument(f"blob {digest} is not a Directory message") from None
                yield directory
                for node in directory.directories:
                    child = digests.parse(node.digest.hash, node.digest.size_bytes, root.function)
                    if child.key not in seen:
                        seen.add(child.key)
                        below.append(child)
            level = below


def _page_offset(token: str) -> int:
    """How many directories a page token stands behind."""
    if not token:
        return 0
    if not (token.isascii() and token.isdigit() and len(token) < 12):
        raise InvalidArgument(
            f"page_token {shorten(token)} is not one that an earlier response gave"
        )
    return int(token)
