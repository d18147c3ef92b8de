"""Content from where it is published, over HTTP and HTTPS.

Rule: *blocking*, on threads of its own (`background`); knows nothing of calls.  Each hop is checked
as the first one was, by `hosts`; the address that is checked is the one that is asked, so that a
name that changes in between changes nothing.  What comes is hashed on its way into the store,
and becomes a blob only if it is all there and its checksum is right.

Here and not among the servicers: it is for any transport that wants an asset.  The standard
library's client, because it leaves connecting and redirects to the caller: both are checked here.
"""

from __future__ import annotations

import http.client
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urljoin

from cas.digest import Digest, Function, shorten
from cas.reapi.background import Background
from cas.reapi.hosts import PORTS, Host, Location, bracketed, is_allowed, is_public, locate
from cas.reapi.integrity import Checksum
from cas.store.interface import BlobStore
from cas.store.pending import Pending
from cas.store.room import in_room_blocking

THREADS = 4
QUEUE = 64
"""Fetches that run or wait at once, in one process."""
REDIRECTS = 10
IDLE_SECONDS = 30.0
"""For which an origin may send nothing."""
PIECE = 256 << 10

Keep = Callable[[Digest], Pending[None]]

Why = Literal["absent", "refused", "late", "broken", "too large"]

_HEADERS = {
    "Accept": "*/*",
    "Accept-Encoding": "identity",
    "Connection": "close",
    "User-Agent": "cas",
}

log = logging.getLogger("cas.origin")


class FetchError(Exception):
    """The origin, or the way to it, did not give the content: nobody's fault here."""

    def __init__(self, why: Why, message: str) -> None:
        super().__init__(message)
        self.why = why


@dataclass(frozen=True, slots=True)
class OriginOptions:
    """What an operator allows."""

    hosts: tuple[Host, ...] = ()
    """Which are asked; none are: nothing is fetched."""
    private: bool = False
    """Whether those at addresses that are not public are, too."""
    max_size: int = 1 << 30
    """Bytes of one fetch."""
    timeout: float = 300.0
    """Seconds for one, at most."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be fetched."""

    url: str
    function: Function
    checksums: Sequence[Checksum] = ()
    seconds: float = 300.0


@dataclass(slots=True)
class _Open:
    """The connections of fetches that run, to be cut when the process ends."""

    sockets: set[socket.socket] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)
    ended: bool = False


class Origins:
    """Fetches, a few at a time.  Any thread may ask."""

    def __init__(self, store: BlobStore, options: OriginOptions) -> None:
        self._store = store
        self.options = options
        self._open = _Open()
        self._background = Background("cas-origin", THREADS, QUEUE, "fetches are under way")

    def begin(self, wanted: Wanted, keep: Keep) -> Pending[Digest]:
        """Fetches into the store, and enters by `keep` what the blob is; goes on if nobody waits
        any more.

        The result fails with FetchError, or with what the store says.  Raises LimitExceeded when
        too much is under way.
        """
        fetch = _Fetch(
            self._store, self.options, wanted, time.monotonic() + wanted.seconds, self._open
        )

        def work() -> Digest:
            digest = fetch.run()
            keep(digest).wait()
            return digest

        return self._background.begin(work)

    def close(self) -> None:
        """*Blocking.*  Ends all of it."""
        with self._open.lock:
            self._open.ended = True
            for opened in self._open.sockets:
                _cut(opened)
        self._background.close()


class _Fetch:
    """One fetch."""

    def __init__(
        self,
        store: BlobStore,
        options: OriginOptions,
        wanted: Wanted,
        deadline: float,
        opened: _Open,
    ) -> None:
        self._store = store
        self._options = options
        self._wanted = wanted
        self._deadline = deadline
        self._open = opened

    def run(self) -> Digest:
        url = self._wanted.url
        secure = False
        for _ in range(REDIRECTS + 1):
            location = self._checked(url, secure=secure)
            secure = secure or location.scheme == "https"
            try:
                found = self._ask(location, url)
            except (OSError, http.client.HTTPException) as error:
                raise self._failed(error, location) from None
            if isinstance(found, Digest):
                log.info("fetched", extra={"host": location.host, "digest": str(found)})
                return found
            url = found
        raise FetchError("broken", f"{shorten(self._wanted.url, 300)}: too many redirects")

    def _checked(self, url: str, *, secure: bool) -> Location:
        location = locate(url)
        if location is None or not is_allowed(location, self._options.hosts):
            raise FetchError("refused", f"{shorten(url, 300)} is not at a host that is allowed")
        if secure and location.scheme != "https":
            raise FetchError("refused", f"{shorten(url, 300)} leads from HTTPS to HTTP")
        return location

    def _ask(self, location: Location, url: str) -> Digest | str:
        """What came, or the URL that the origin leads to."""
        connection = http.client.HTTPConnection(location.host, location.port)
        with closing(connection), closing(self._connected(location)) as opened:
            self._enter(opened)
            # Patience is for each read: a head that trickles in would have no end.
            cut = threading.Timer(self._left(), _cut, (opened,))
            cut.daemon = True
            cut.start()
            try:
                # Its own connecting is not wanted: the name would be looked up again.
                connection.sock = opened
                headers = {**_HEADERS, "Host": bracketed(location.host)}
                if location.port != PORTS[location.scheme]:
                    headers["Host"] += f":{location.port}"
                connection.request("GET", location.target, headers=headers)
                with closing(connection.getresponse()) as response:
                    return self._answered(response, opened, location, url)
            finally:
                cut.cancel()
                with self._open.lock:
                    self._open.sockets.discard(opened)

    def _enter(self, opened: socket.socket) -> None:
        with self._open.lock:
            if self._open.ended:
                raise FetchError("broken", "the server stops")
            self._open.sockets.add(opened)

    def _connected(self, location: Location) -> socket.socket:
        failure: OSError | None = None
        found = socket.getaddrinfo(location.host, location.port, type=socket.SOCK_STREAM)
        addresses = [str(entry[4][0]) for entry in found]
        allowed = [one for one in addresses if self._options.private or is_public(one)]
        if not allowed:
            raise FetchError("refused", f"{location.host} has no public address")
        for address in allowed:
            try:
                opened = socket.create_connection((address, location.port), self._patience())
            except OSError as error:
                failure = error
                continue
            if location.scheme == "http":
                return opened
            try:
                context = ssl.create_default_context()
                return context.wrap_socket(
                    opened,
                    server_hostname=location.host,
                    # Else an end that anybody on the way could make would pass for the origin's.
                    suppress_ragged_eofs=False,
                )
            except BaseException:
                opened.close()
                raise
        assert failure is not None
        raise failure

    def _answered(
        self,
        response: http.client.HTTPResponse,
        opened: socket.socket,
        location: Location,
        url: str,
    ) -> Digest | str:
        status = response.status
        if status in {301, 302, 303, 307, 308}:
            return urljoin(url, response.headers.get("Location", ""))
        if status in {404, 410}:
            raise FetchError("absent", f"{shorten(url, 300)}: HTTP {status}")
        if status in {401, 403}:
            raise FetchError("refused", f"{shorten(url, 300)}: HTTP {status}")
        if status != 200:
            raise FetchError("broken", f"{shorten(url, 300)}: HTTP {status}")
        coding = response.headers.get("Content-Encoding", "identity").strip().lower()
        if coding != "identity":
            raise FetchError("broken", f"{location.host} sent {coding!r}, which was not asked for")
        return self._taken(response, opened, location)

    def _taken(
        self, response: http.client.HTTPResponse, opened: socket.socket, location: Location
    ) -> Digest:
        length = response.length
        self._check_size(length or 0)
        hashers = {c.function: c.function.new() for c in self._wanted.checksums}
        spool = self._store.spool(self._wanted.function, length)
        try:
            size = 0
            while True:
                opened.settimeout(self._patience())
                piece = response.read1(PIECE)
                if not piece:
                    break
                size += len(piece)
                self._check_size(size)
                for hasher in hashers.values():
                    hasher.update(piece)
                if spool.append(piece):
                    in_room_blocking(self._store, 0, spool.flush)
            # What was cut, here or there, may look as if it had come to its end.
            self._patience()
            if self._open.ended:
                raise FetchError("broken", "the server stops")
            if length is not None and size != length:
                raise FetchError("broken", f"{location.host} sent {size} of {length} bytes")
            came = {function: hasher.digest() for function, hasher in hashers.items()}
            if came and not any(came[c.function] == c.hash for c in self._wanted.checksums):
                raise FetchError("broken", f"what {location.host} sent has another checksum")
            digest, pending = in_room_blocking(self._store, 0, spool.finish)
        finally:
            spool.discard()
        pending.wait()
        return digest

    def _check_size(self, size: int) -> None:
        if size > self._options.max_size:
            raise FetchError(
                "too large", f"it has more than {self._options.max_size} bytes (fetch_max_size)"
            )

    def _patience(self) -> float:
        return min(self._left(), IDLE_SECONDS)

    def _left(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    def _failed(self, error: OSError | http.client.HTTPException, location: Location) -> FetchError:
        # What was cut at the deadline ends in any way.
        if time.monotonic() >= self._deadline:
            return FetchError("late", f"{location.host} took more than {self._wanted.seconds:g} s")
        if isinstance(error, TimeoutError):
            return FetchError("broken", f"{location.host} sent nothing for {IDLE_SECONDS:g} s")
        return FetchError("broken", f"{location.host}: {str(error) or type(error).__name__}")


def _cut(opened: socket.socket) -> None:
    """Whoever reads there now comes to an end."""
    with suppress(OSError):
        opened.shutdown(socket.SHUT_RDWR)
