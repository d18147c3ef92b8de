"""A connection over HTTP: Bazel's simple cache protocol, ``/cas/HASH`` and ``/ac/HASH``.

Rule: the one table from HTTP statuses to errors.  There are no batches, no resumption of
uploads and no capabilities here; a download goes on by a Range request.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import ssl
import urllib.parse
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from google.protobuf.message import DecodeError

from cas.client.credentials import Authorizer, Credentials
from cas.client.errors import (
    PermissionDenied,
    RemoteError,
    Unauthenticated,
    Unavailable,
    Unsupported,
)
from cas.client.remote import Remote
from cas.client.wire import Offer, Parcel, Piece, Pull
from cas.digest import SHA256, Digest, empty
from cas.errors import (
    BlobTooLarge,
    CasError,
    InvalidArgument,
    NoSpace,
    NotFound,
    OutOfRange,
)
from cas.pb import remote_execution_pb2 as pb

CONNECTIONS = 32
"""At once: HEAD requests are one a digest."""

IDLE_SECONDS = 120.0
"""Between two pieces of an answer; transfers have no deadline in all."""

PIECE = 1 << 20
MAX_STATUS = 1 << 20
"""Bytes of what a server says of itself."""

_STATUSES: dict[int, type[CasError]] = {
    400: InvalidArgument,
    401: Unauthenticated,
    403: PermissionDenied,
    404: NotFound,
    405: Unsupported,
    408: Unavailable,
    411: InvalidArgument,
    413: BlobTooLarge,
    416: OutOfRange,
    422: InvalidArgument,
    425: Unavailable,
    429: Unavailable,
    500: Unavailable,
    501: Unsupported,
    502: Unavailable,
    503: Unavailable,
    504: Unavailable,
    507: NoSpace,
}


class HttpWire:
    """See `cas.client.wire.Wire`."""

    resumes = False

    def __init__(self, remote: Remote, credentials: Credentials) -> None:
        self._base = remote.base
        self._authorizer = Authorizer(credentials, remote)
        connector: aiohttp.BaseConnector
        if remote.socket:
            connector = aiohttp.UnixConnector(remote.socket, limit=CONNECTIONS)
        else:
            context = _context(credentials) if remote.tls else True
            connector = aiohttp.TCPConnector(ssl=context, limit=CONNECTIONS)
        self._session = aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=None, sock_read=IDLE_SECONDS, sock_connect=30),
            # Blobs are bytes under a digest: nothing may be decoded on the way.
            auto_decompress=False,
            headers={"User-Agent": "cas", "Accept-Encoding": "identity"},
            read_bufsize=PIECE,
        )

    @asynccontextmanager
    async def _request(
        self, method: str, path: str, *, answers: bool = False, **more: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A request and its answer; with `answers` one that says no is an answer, too."""
        headers = {**dict(await self._authorizer.headers()), **more.pop("headers", {})}
        url = f"{self._base}/{path}"
        try:
            async with self._session.request(
                method, url, headers=headers, allow_redirects=method != "PUT", **more
            ) as response:
                refused = response.status >= 300
                if refused and not (answers and response.status in {404, 405, 501}):
                    raise await self._error(response)
                yield response
        except aiohttp.ClientConnectorCertificateError as error:
            raise RemoteError(f"its certificate is not trusted: {error}") from None
        except aiohttp.ClientSSLError as error:
            raise RemoteError(f"TLS failed: {error}") from None
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
            raise Unavailable(str(error) or type(error).__name__) from None

    async def _error(self, response: aiohttp.ClientResponse) -> CasError:
        said = (await response.content.read(300)).decode(errors="replace").strip()
        status = response.status
        kind = _STATUSES.get(status, Unavailable if status >= 500 else RemoteError)
        message = f"{said or response.reason} (HTTP {status})"
        if kind is Unauthenticated and self._authorizer.refused():
            return Unavailable(message)
        return kind(message)

    async def offer(self) -> Offer:
        # Answers may always be asked for as zstd.  Bodies only go so where the server says that
        # it takes them (RFC 7694): another would store them as they are.
        async with self._request("HEAD", f"cas/{empty(SHA256).hex}", answers=True) as response:
            taken = response.headers.get("Accept-Encoding", "")
        zstd = "zstd" in [coding.partition(";")[0].strip() for coding in taken.split(",")]
        return Offer(batch=2 << 20, zstd=zstd, zstd_batch=zstd)

    async def find_missing(self, digests: Sequence[Digest]) -> list[Digest]:
        absent = await asyncio.gather(*(self._absent(digest) for digest in digests))
        return [digest for digest, gone in zip(digests, absent, strict=True) if gone]

    async def _absent(self, digest: Digest) -> bool:
        if not digest.size:
            return False
        try:
            async with self._request("HEAD", _path("cas", digest)):
                return False
        except NotFound:
            return True

    async def write_many(self, parcels: Sequence[Parcel]) -> list[CasError | None]:
        async def one(digest: Digest, data: bytes, zstd: bool) -> CasError | None:
            headers = _as_zstd(digest) if zstd else {}
            path = _path("cas", digest)
            try:
                async with self._request("PUT", path, data=data, headers=headers):
                    return None
            except CasError as error:
                return error

        return await asyncio.gather(*(one(*parcel) for parcel in parcels))

    async def read_many(self, digests: Sequence[Digest], zstd: bool) -> list[Parcel | CasError]:
        async def one(digest: Digest) -> Parcel | CasError:
            headers = {"Accept-Encoding": "zstd"} if zstd else {}
            try:
                async with self._request("GET", _path("cas", digest), headers=headers) as response:
                    return Parcel(digest, await response.read(), _is_zstd(response))
            except CasError as error:
                return error

        return await asyncio.gather(*(one(digest) for digest in digests))

    async def read(self, digest: Digest, offset: int, zstd: bool) -> AsyncGenerator[Piece, None]:
        # A range is of the bytes as they are sent: of zstd none could be decoded.
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        if zstd and not offset:
            headers["Accept-Encoding"] = "zstd"
        async with self._request("GET", _path("cas", digest), headers=headers) as response:
            packed = _is_zstd(response)
            # Not every server knows ranges: this one sends the whole again.
            skip = offset if response.status == 200 else 0
            async for piece in response.content.iter_chunked(PIECE):
                if skip >= len(piece):
                    skip -= len(piece)
                    continue
                yield memoryview(piece)[skip:] if skip else piece, packed
                skip = 0

    def upload_name(self, digest: Digest, zstd: bool) -> str:
        return _path("cas", digest)

    async def write(self, digest: Digest, name: str, offset: int, pull: Pull, zstd: bool) -> int:
        async def body() -> AsyncIterator[bytes]:
            while piece := await pull():
                yield piece

        # How long zstd becomes is not known before it is sent.
        headers = _as_zstd(digest) if zstd else {"Content-Length": str(digest.size)}
        async with self._request("PUT", name, data=body(), headers=headers):
            return digest.size

    async def committed(self, name: str) -> int:
        return 0

    async def get_action(self, action: Digest) -> pb.ActionResult | None:
        try:
            async with self._request("GET", _path("ac", action)) as response:
                raw = await response.read()
        except NotFound:
            return None
        try:
            return pb.ActionResult.FromString(raw)
        except DecodeError:
            raise RemoteError(
                f"what the remote holds under {_path('ac', action)} is not an ActionResult"
            ) from None

    async def put_action(self, action: Digest, result: pb.ActionResult) -> None:
        data = result.SerializeToString()
        async with self._request("PUT", _path("ac", action), data=data):
            return

    async def clock(self) -> float | None:
        try:
            async with self._session.head(f"{self._base}/cas/{'0' * 64}") as response:
                date = response.headers.get("Date")
        except (aiohttp.ClientError, TimeoutError) as error:
            raise Unavailable(str(error)) from None
        return email.utils.parsedate_to_datetime(date).timestamp() if date else None

    async def status(self) -> dict[str, Any] | None:
        # Not below an instance, which the base may end with.
        url = urllib.parse.urljoin(f"{self._base}/", "/status")
        headers = dict(await self._authorizer.headers())
        try:
            async with self._session.get(url, headers=headers) as response:
                if response.status != 200:
                    return None
                told = json.loads(await response.content.read(MAX_STATUS))
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return None
        return told if isinstance(told, dict) else None

    async def close(self) -> None:
        await self._session.close()


def _path(kind: str, digest: Digest) -> str:
    # Bazel's protocol knows none but functions told by a hash's length: the others are named as
    # our server has it.
    function = digest.function
    return f"{function.name}/{kind}/{digest.hex}" if function.in_names else f"{kind}/{digest.hex}"


def _as_zstd(digest: Digest) -> dict[str, str]:
    # What it becomes is told as Bazel's other clients do: a server need not trust a frame.
    return {"Content-Encoding": "zstd", "X-Digest-SizeBytes": str(digest.size)}


def _is_zstd(response: aiohttp.ClientResponse) -> bool:
    coding = response.headers.get("Content-Encoding", "identity")
    if coding not in {"identity", "zstd"}:
        raise RemoteError(f"the remote sent Content-Encoding {coding!r}, which was not asked for")
    return coding == "zstd"


def _context(credentials: Credentials) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=credentials.ca)
    if credentials.certificate:
        context.load_cert_chain(credentials.certificate, credentials.key)
    return context
