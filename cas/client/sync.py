"""`Client`: the same as `AsyncClient` for code that does not await.

Rule: no behaviour of its own.  One thread runs the event loop; any thread may call.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from cas.client import pull as pulling
from cas.client import push as pushing
from cas.client.client import AsyncClient
from cas.client.credentials import Credentials
from cas.client.remote import Remote
from cas.client.source import Blob
from cas.client.transfer import Tally
from cas.digest import SHA256, Digest, Function
from cas.pb import remote_execution_pb2 as pb

T = TypeVar("T")


class Client:
    """A remote; takes what `AsyncClient` takes.  `with` closes it."""

    def __init__(
        self, remote: str | Remote, credentials: Credentials | None = None, **options: Any
    ) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="cas-client", daemon=True
        )
        self._thread.start()
        try:
            self.asynchronous = self._run(_made(remote, credentials, options))
        except BaseException:
            self._stop()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._run(self.asynchronous.close())
        self._stop()

    @property
    def tally(self) -> Tally:
        return self.asynchronous.tally

    def has(self, digest: Digest) -> bool:
        return self._run(self.asynchronous.has(digest))

    def find_missing(self, digests: Iterable[Digest]) -> list[Digest]:
        return self._run(self.asynchronous.find_missing(digests))

    def put(self, content: bytes | Path, function: Function = SHA256) -> Digest:
        return self._run(self.asynchronous.put(content, function))

    def put_blobs(self, blobs: Iterable[Blob]) -> None:
        self._run(self.asynchronous.put_blobs(blobs))

    def get(self, digest: Digest) -> bytes:
        return self._run(self.asynchronous.get(digest))

    def get_file(self, digest: Digest, path: Path) -> None:
        self._run(self.asynchronous.get_file(digest, path))

    def get_action(self, action: Digest) -> pb.ActionResult | None:
        return self._run(self.asynchronous.get_action(action))

    def put_action(self, action: Digest, result: pb.ActionResult) -> None:
        self._run(self.asynchronous.put_action(action, result))

    def push_tree(self, directory: Path, **options: Any) -> pushing.Pushed:
        """`cas.client.push.push_tree`"""
        return self._run(pushing.push_tree(self.asynchronous, directory, **options))

    def pull_tree(self, root: Digest, directory: Path, **options: Any) -> pulling.Pulled:
        """`cas.client.pull.pull_tree`"""
        return self._run(pulling.pull_tree(self.asynchronous, root, directory, **options))

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _made(
    remote: str | Remote, credentials: Credentials | None, options: dict[str, Any]
) -> AsyncClient:
    # Connections belong to the loop that they are made in.
    return AsyncClient(remote, credentials, **options)
