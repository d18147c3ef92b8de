"""Nodes over one container of Azurite, Azure's own emulator of its Blob Storage.

Checks what `real` checks over S3, and besides: a damaged object is quarantined by its name, whether
it is read or scrubbed; one that two nodes send in parts at once is there for both; an account is
found by whichever variables of the environment name it.

Rule: what is expected comes from what clients sent.  Times are told, never judged.

Azurite writes down what it has only every five seconds, so a SIGKILL at any other moment has it
lose what it acknowledged: here it is killed once it has written, and ended by SIGTERM where writers
go on.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import http.client
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack
from email.utils import formatdate
from functools import partial
from pathlib import Path
from unittest import mock

import grpc

from cas.upstream.objects import Absent
from cas.upstream.obstores import PART, ObStore, connect
from tests.conformance.client import KIB, MIB, Blob, Client, fails, fresh
from tests.server.serving import ROOT, until
from tests.upstream import fleet, real
from tests.upstream.real import HOME, Fleet, Store

ACCOUNT = "cas"
KEY = base64.b64encode(b"not-a-secret").decode()
CONTAINER = "box"
SAVED = ("__azurite_db_blob__.json", "__azurite_db_blob_extent__.json")


class Azurite:
    """Over a directory.  See `real.Store`."""

    def __init__(self, scratch: Path) -> None:
        self.environ = {"AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT, "AZURE_STORAGE_ACCOUNT_KEY": KEY}
        self.wrong = {"AZURE_STORAGE_ACCOUNT_KEY": base64.b64encode(b"wrong").decode()}
        self.scratch = scratch
        self._objects = scratch / "objects"
        self._objects.mkdir()
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}/{ACCOUNT}"

    @property
    def flags(self) -> Sequence[str]:
        return ("--upstream", f"az://{CONTAINER}/team", "--upstream-endpoint", self.endpoint)

    def itself(self) -> ObStore:
        given = {"endpoint": self.endpoint, "account_name": ACCOUNT, "account_key": KEY}
        return connect(f"az://{CONTAINER}/team", given, connect_timeout=5)

    def start(self) -> None:
        with (self.scratch / "azurite.log").open("ab") as log:
            self._process = subprocess.Popen(
                ["node", HOME / "azurite/node_modules/azurite/dist/src/blob/main.js",
                 "--blobHost", "127.0.0.1", "--blobPort", str(self.port),
                 "--location", self._objects, "--silent", "--disableTelemetry"],
                cwd=self.scratch, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={**os.environ, "AZURITE_ACCOUNTS": f"{ACCOUNT}:{KEY}"},
            )  # fmt: skip
        until(self._listens, "Azurite listens")

    def _listens(self) -> bool:
        process = self._process
        assert process is not None
        assert process.poll() is None, (self.scratch / "azurite.log").read_text()
        found = real.listening(process.pid)
        if found:
            self.port = found
        return bool(found)

    def kill(self) -> None:
        """By SIGKILL, once all that it has is written down."""
        mark, began = f"v1/mark/{uuid.uuid4()}", time.time()
        asyncio.run(self.itself().put(mark, b"x"))
        first, second = (self._objects / name for name in SAVED)
        until(
            lambda: (
                mark in first.read_text()
                and min(first.stat().st_mtime, second.stat().st_mtime) > began
            ),
            "Azurite has written down what it has",
        )
        self.end(signal.SIGKILL)

    def end(self, by: signal.Signals = signal.SIGTERM) -> None:
        assert self._process is not None
        self._process.send_signal(by)
        self._process.wait()

    def make(self) -> None:
        """The container: asked for and signed as Azure's documentation of Shared Key has it."""
        date, version = formatdate(usegmt=True), "2021-08-06"
        # An account that is named by the path stands twice in the resource.
        resource = f"/{ACCOUNT}/{ACCOUNT}/{CONTAINER}\nrestype:container"
        said = f"PUT{12 * chr(10)}x-ms-date:{date}\nx-ms-version:{version}\n{resource}"
        made = hmac.new(base64.b64decode(KEY), said.encode(), hashlib.sha256)
        signature = base64.b64encode(made.digest()).decode()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(
                "PUT",
                f"/{ACCOUNT}/{CONTAINER}?restype=container",
                headers={
                    "x-ms-date": date,
                    "x-ms-version": version,
                    "Authorization": f"SharedKey {ACCOUNT}:{signature}",
                    "Content-Length": "0",
                },
            )
            answer = connection.getresponse()
            assert answer.status == 201, answer.read()
        finally:
            connection.close()


class Ended:
    """Azurite, ended in order.  See `fleet.Mortal`."""

    def __init__(self, objects: Azurite) -> None:
        self.kill = objects.end
        self.start = objects.start


def main() -> int:
    if not (HOME / "azurite" / ".complete").exists():
        print("tests.upstream.azure: skipped, since tests/upstream/setup found no npm or Node")
        return 0
    with tempfile.TemporaryDirectory(prefix="cas-azure-") as name, ExitStack() as running:
        scratch = Path(name)
        objects = Azurite(scratch)
        objects.start()
        running.callback(lambda: objects.end(signal.SIGKILL))
        objects.make()
        steps: list[real.Step] = [
            real.shared, real.counted, real.streamed, real.renewed, partial(together, objects),
            damaged, partial(named, objects), real.refused, real.outage, partial(ended, objects),
        ]  # fmt: skip
        real.walk(steps, Fleet(scratch, running, objects), objects)
    return 0


def together(azurite: Azurite, nodes: Fleet, objects: Store) -> None:
    """Azure keeps one heap of parts for a name, whoever sends them."""
    data = random.Random(11).randbytes(2 * PART + 17)
    waiting = asyncio.Event()

    async def parts(*, waits: bool) -> AsyncIterator[bytes]:
        yield data[: 2 * PART]
        if waits:
            await waiting.wait()
        yield data[2 * PART :]

    async def run() -> None:
        store = objects.itself()
        slow = asyncio.create_task(store.put_parts("v1/twice", parts(waits=True)))
        # Its first parts have gone once the other's are overwritten.
        await asyncio.sleep(1)
        await store.put_parts("v1/twice", parts(waits=False))
        waiting.set()
        await slow
        found = await store.get("v1/twice", 0, None)
        assert b"".join([piece async for piece in found.pieces()]) == data

    asyncio.run(run())


def damaged(nodes: Fleet, objects: Store) -> None:
    read, scrubbed = fresh(3 * MIB), fresh(30 * KIB)
    with Client(nodes.node("fills-damaged").grpc) as client:
        client.upload(read)
        client.put(scrubbed)
    for blob in (read, scrubbed):
        asyncio.run(objects.itself().put(_key(blob), blob.data[:-1] + b"?"))
    with Client(nodes.node("reads-damaged").grpc) as client:
        with fails(grpc.StatusCode.DATA_LOSS):
            client.read(read.name)
        assert client.missing(read) == [read.digest]
    assert _quarantined(objects, read)
    told = subprocess.run(
        [sys.executable, "-m", "cas", "admin", "upstream", "scrub", *objects.flags,
         "--sample", "0"],
        cwd=ROOT, env={**os.environ, **objects.environ}, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    print("   ", told.stdout.splitlines()[-1:])
    assert told.returncode == 1, told.stderr
    assert f"bad: {_key(scrubbed)}\n" in told.stdout
    assert "1 bad, moved to quarantine" in told.stdout
    assert _quarantined(objects, scrubbed)


def _key(blob: Blob) -> str:
    return f"v1/cas/sha256/{blob.hash[:2]}/{blob.hash}"


def _quarantined(objects: Store, blob: Blob) -> bool:
    """Whether it lies there, and nowhere else."""
    prefix = _key(blob).replace("v1/cas/", "v1/quarantine/cas/")

    async def look() -> bool:
        store = objects.itself()
        place = prefix.rpartition("/")[0]
        names = [entry.key async for batch in store.list(place) for entry in batch]
        try:
            await store.head(_key(blob))
        except Absent:
            return any(name.startswith(f"{prefix}.") for name in names)
        return False

    return asyncio.run(look())


def named(azurite: Azurite, nodes: Fleet, objects: Store) -> None:
    """Every way that docs/upstream.md tells to say which account it is."""
    parts = f"AccountName={ACCOUNT};AccountKey={KEY};BlobEndpoint={azurite.endpoint}"
    account = objects.environ
    ways: tuple[tuple[Mapping[str, str], dict[str, str]], ...] = (
        (account, {"endpoint": azurite.endpoint}),
        ({**account, "AZURE_STORAGE_ENDPOINT": azurite.endpoint}, {}),
        ({**account, "AZURE_STORAGE_USE_EMULATOR": "true"}, {"endpoint": azurite.endpoint}),
        ({"AZURE_STORAGE_CONNECTION_STRING": parts}, {}),
    )
    others = {name: value for name, value in os.environ.items() if not name.startswith("AZURE_")}
    asyncio.run(objects.itself().put("v1/named", b"x"))
    for environ, options in ways:
        with mock.patch.dict(os.environ, {**others, **environ}, clear=True):
            store = connect(f"az://{CONTAINER}/team", options, connect_timeout=5)
            assert asyncio.run(store.head("v1/named")) == 1, sorted(environ)


def ended(azurite: Azurite, nodes: Fleet, objects: Store) -> None:
    """Writers that go on while Azurite is ended and started again."""
    anew = partial(nodes.node, "reads")
    told = fleet.loses_nothing(nodes.node("writes"), anew, Ended(azurite), 1)
    print("   ", told)


if __name__ == "__main__":
    sys.exit(main())
