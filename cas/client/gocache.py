"""Go's GOCACHEPROG protocol (Go 1.24 and later), with a remote behind it.

Rule: the go command never waits for an upload, and never fails because the remote does: what
cannot be fetched is a miss.  The protocol is what cmd/go/internal/cacheprog says: one JSON
object a line each way, a put's body as a base64 string on the line after it, answers in any
order.  Go wants files: they are kept in a directory here, which may be deleted at any time.

An entry is an action result under an action that only names Go's action ID; its one output
file is the body, its path Go's output ID.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import datetime
import json
import os
import tempfile
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from cas.client.client import AsyncClient
from cas.client.lists import action_of, note_of, set_note
from cas.client.names import digest_of, message_of
from cas.client.source import Blob, File, of_bytes
from cas.client.transfer import together
from cas.digest import Digest
from cas.errors import CasError
from cas.pb import remote_execution_pb2 as pb

KEPT_SECONDS = 5 * 86_400
"""What was not used for so long goes, as from Go's own cache."""

TOUCH_SECONDS = 3600
"""A use is noted by the file's time, not more often than this."""

TRIM_SECONDS = 86_400

AT_ONCE = 64
"""Requests that are answered at the same time."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Go's output ID in hex, the body's size, and when it was put, in seconds since 1970."""

    output: str
    size: int
    at: float


@dataclass(slots=True)
class Counts:
    """What a build asked for and where it came from."""

    gets: int = 0
    local: int = 0
    remote: int = 0
    puts: int = 0
    uploaded: int = 0
    failed: str = ""
    """The remote's first error."""


class Disk:
    """The files that Go reads.  Blocking; processes may share a directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def data(self, output: str) -> Path:
        return self.directory / output[:2] / f"{output}-d"

    def find(self, action: str) -> Entry | None:
        """The entry, if its body is here and whole."""
        try:
            output, size, at = (self._index(action)).read_text().split()
            entry = Entry(output, int(size), float(at))
            status = self.data(output).stat()
        except (OSError, ValueError):
            return None
        if status.st_size != entry.size:
            return None
        if time.time() - status.st_mtime > TOUCH_SECONDS:
            with contextlib.suppress(OSError):
                os.utime(self.data(output))
                os.utime(self._index(action))
        return entry

    def put(self, action: str, entry: Entry, body: bytes) -> None:
        target = self.data(entry.output)
        if not target.is_file() or target.stat().st_size != entry.size:
            self._write(target, body)
        self._write(self._index(action), f"{entry.output} {entry.size} {entry.at}\n".encode())

    def trim(self) -> None:
        """Removes what was not used for long, once a day."""
        marker = self.directory / "trimmed"
        now = time.time()
        with contextlib.suppress(OSError):
            if now - marker.stat().st_mtime < TRIM_SECONDS:
                return
        self.directory.mkdir(parents=True, exist_ok=True)
        marker.touch()
        for path in self.directory.glob("??/*-[ad]"):
            with contextlib.suppress(OSError):
                if now - path.stat().st_mtime > KEPT_SECONDS:
                    path.unlink()

    def _index(self, action: str) -> Path:
        return self.directory / action[:2] / f"{action}-a"

    def _write(self, path: Path, data: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(data)
        os.replace(file.name, path)


class Program:
    """Answers one go command.  `source` gives its requests, `answer` takes our lines."""

    def __init__(
        self,
        client: AsyncClient,
        disk: Disk,
        source: BinaryIO,
        answer: Callable[[bytes], object],
    ) -> None:
        self.counts = Counts()
        self._client = client
        self._disk = disk
        self._source = source
        self._answer = answer
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._uploads: asyncio.Queue[tuple[str, Entry, Digest] | None] = asyncio.Queue()

    async def run(self) -> None:
        """Until the go command closes, and all uploads are done."""
        self._say({"ID": 0, "KnownCommands": ["get", "put", "close"]})
        uploading = asyncio.ensure_future(self._upload_all())
        closing = None
        async with asyncio.TaskGroup() as group:
            while (request := await self._client.run(_read, self._source)) is not None:
                if request["Command"] == "close":
                    closing = request
                    break
                await self._turns.acquire()
                group.create_task(self._turn(request))
        self._uploads.put_nowait(None)
        await uploading
        await self._client.run(self._disk.trim)
        if closing is not None:
            self._say({"ID": closing["ID"]})

    async def _turn(self, request: dict[str, Any]) -> None:
        commands: dict[str, Callable[[dict[str, Any]], Coroutine[Any, Any, dict[str, Any]]]]
        commands = {"get": self._get, "put": self._put}
        try:
            command = commands.get(request["Command"])
            if command is None:
                said = {"Err": f"command {request['Command']!r} is not known"}
            else:
                said = await command(request)
        except OSError as error:
            said = {"Err": str(error)}
        finally:
            self._turns.release()
        self._say({"ID": request["ID"], **said})

    async def _get(self, request: dict[str, Any]) -> dict[str, Any]:
        self.counts.gets += 1
        action = base64.b64decode(request["ActionID"]).hex()
        entry = await self._client.run(self._disk.find, action)
        if entry is not None:
            self.counts.local += 1
        else:
            try:
                entry = await self._fetch(action)
            except CasError as error:
                self._failed(error)
            if entry is None:
                return {"Miss": True}
            self.counts.remote += 1
        at = datetime.datetime.fromtimestamp(entry.at, datetime.UTC)
        return {
            "OutputID": base64.b64encode(bytes.fromhex(entry.output)).decode(),
            "Size": entry.size,
            "Time": at.isoformat(),
            "DiskPath": str(self._disk.data(entry.output)),
        }

    async def _fetch(self, action: str) -> Entry | None:
        result = await self._client.get_action(action_of("go", action))
        if result is None or len(result.output_files) != 1:
            return None
        file = result.output_files[0]
        at = float(note_of(result).get("at", time.time()))
        digest = digest_of(file.digest)
        entry = Entry(bytes.fromhex(file.path).hex(), digest.size, at)
        body = await self._client.get(digest)
        await self._client.run(self._disk.put, action, entry, body)
        return entry

    async def _put(self, request: dict[str, Any]) -> dict[str, Any]:
        self.counts.puts += 1
        action = base64.b64decode(request["ActionID"]).hex()
        output = base64.b64decode(request["OutputID"]).hex()
        body: bytes = request["Body"]
        entry = Entry(output, len(body), time.time())
        await self._client.run(self._disk.put, action, entry, body)
        digest = (await self._client.run(of_bytes, body)).digest
        self._uploads.put_nowait((action, entry, digest))
        return {"DiskPath": str(self._disk.data(output))}

    async def _upload_all(self) -> None:
        """Takes together what waits, so that a build's many small files travel in batches."""
        ended = False
        while not ended:
            waiting = [await self._uploads.get()]
            while not self._uploads.empty():
                waiting.append(self._uploads.get_nowait())
            ended = None in waiting
            batch = [one for one in waiting if one is not None]
            if not batch or self.counts.failed:
                continue
            try:
                await self._client.put_blobs(
                    Blob(digest, File(self._disk.data(entry.output))) for _, entry, digest in batch
                )
                await together(self._put_action(*one) for one in batch)
                self.counts.uploaded += len(batch)
            except (CasError, OSError) as error:
                self._failed(error)

    async def _put_action(self, action: str, entry: Entry, digest: Digest) -> None:
        result = pb.ActionResult()
        result.output_files.add(path=entry.output, digest=message_of(digest))
        set_note(result, {"at": entry.at})
        await self._client.put_action(action_of("go", action), result)

    def _failed(self, error: Exception) -> None:
        self.counts.failed = self.counts.failed or str(error)

    def _say(self, answer: dict[str, Any]) -> None:
        self._answer(json.dumps(answer).encode() + b"\n")


def _read(source: BinaryIO) -> dict[str, Any] | None:
    """The next request, a put's body as bytes under "Body"; None at the end."""
    line = _line(source)
    if not line:
        return None
    request: dict[str, Any] = json.loads(line)
    if request["Command"] == "put":
        body = _line(source) if request.get("BodySize") else b""
        request["Body"] = base64.b64decode(body.strip().strip(b'"'))
        if len(request["Body"]) != request.get("BodySize", 0):
            raise ValueError(f"the go command sent {len(request['Body'])} bytes of a body")
    return request


def _line(source: BinaryIO) -> bytes:
    while (line := source.readline()) and not line.strip():
        pass
    return line
