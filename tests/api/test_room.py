"""Writes to a full store, as a client meets them: both engines, and nothing that makes room but
the test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

from cas import digest as digests
from cas.api import service
from cas.api.limits import Limits
from cas.digest import SHA256
from cas.pb import bytestream_pb2 as bs
from cas.pb import remote_execution_pb2 as pb
from cas.rpc.handler import EOF
from cas.store.directory import prepare
from cas.store.local import LocalStore, StoreOptions, open_store
from cas.store.uploads import LocalUpload
from cas.store.usage import SizeLimits
from tests.conformance.client import Blob, Client, fresh
from tests.rpc.serving import ENGINES, eventually, make_engine
from tests.shelves import Shelves

PATIENCE = 40.0


@dataclass
class Full:
    """A server over a store that is full until `let_go`."""

    store: LocalStore
    client: Client
    held: LocalUpload

    def waits(self) -> bool:
        return self.store._space.wanted() > 0

    def let_go(self) -> None:
        self.held.discard()


@pytest.fixture(params=ENGINES)
def full(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    shelves: Shelves,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Full]:
    monkeypatch.setattr("cas.store.admission.WAIT_SECONDS", 2 * PATIENCE)
    with ExitStack() as stack:
        stack.enter_context(shelves.lent(tmp_path / "store"))
        stack.callback(prepare(tmp_path / "store").close)
        limits = SizeLimits(max_size=32 << 20)
        store = open_store(tmp_path / "store", StoreOptions("none", limits=limits))
        stack.callback(store.close)
        engine = make_engine(request.param)
        engine.add_generic_rpc_handlers(service.handlers(store, engine.runtime, Limits(), EOF))
        port = engine.add_insecure_port("127.0.0.1:0")
        engine.start()
        stack.callback(lambda: engine.wait_for_termination(PATIENCE))
        stack.callback(engine.stop, None)
        client = stack.enter_context(Client(f"127.0.0.1:{port}"))
        room = digests.make(SHA256, bytes(32), store._space.room())
        held = store.upload("all the room", room, 0, b"")
        stack.callback(held.discard)
        yield Full(store, client, held)


def parts(blob: Blob, *ends: int, finish: bool = True) -> Iterator[bs.WriteRequest]:
    """A Write's messages, from each end to the next."""
    for at, end in pairwise(ends):
        yield bs.WriteRequest(
            resource_name=blob.upload,
            write_offset=at,
            data=blob.data[at:end],
            finish_write=finish and end == ends[-1],
        )


def test_a_small_upload_that_pauses_waits_for_room(full: Full) -> None:
    blob = fresh(3743)
    paused = full.client._write.future(
        parts(blob, 0, 1000, 2000, finish=False), timeout=2 * PATIENCE
    )
    assert eventually(lambda: full.waits() or paused.done())
    full.let_go()
    assert paused.result().committed_size == 2000
    assert full.client.query(blob.upload) == (2000, False)
    assert full.client.write(parts(blob, 2000, 3743)) == 3743
    assert full.client.read(blob.name) == blob.data


def test_whatever_is_written_waits_for_room(full: Full) -> None:
    whole, long, first, second, small = map(fresh, (100_000, 3_000_000, 200_000, 200_001, 500))
    batch = pb.BatchUpdateBlobsRequest(
        requests=[
            pb.BatchUpdateBlobsRequest.Request(digest=blob.digest, data=blob.data)
            for blob in (first, second, small)
        ]
    )
    written = [
        full.client._write.future(parts(whole, 0, whole.size), timeout=2 * PATIENCE),
        full.client._write.future(
            parts(long, 0, 1_000_000, 2_000_000, long.size), timeout=2 * PATIENCE
        ),
    ]
    batched = full.client.batch_update_blobs.future(batch, timeout=2 * PATIENCE)
    wanted = whole.size + long.size + first.size + second.size + small.size
    assert eventually(lambda: full.store._space.wanted() >= wanted)
    assert not any(call.done() for call in (*written, batched))
    full.let_go()
    assert [call.result().committed_size for call in written] == [whole.size, long.size]
    assert [answer.status.code for answer in batched.result().responses] == [0, 0, 0]
    for blob in (whole, long, first, second, small):
        assert full.client.read(blob.name) == blob.data


def test_of_many_that_wait_each_gets_room_in_the_end(full: Full) -> None:
    blobs = [fresh(300_000) for _ in range(12)]
    calls = [
        full.client._write.future(parts(blob, 0, 100_000, blob.size), timeout=2 * PATIENCE)
        for blob in blobs
    ]
    space = full.store._space
    assert eventually(lambda: space.wanted() >= 12 * 300_000)
    # For one at a time.
    for left in range(11, -1, -1):
        full.held.reserved -= 350_000
        space.release(350_000)
        assert eventually(lambda most=left: space.wanted() <= most * 300_000)  # type: ignore[misc]
    assert [call.result().committed_size for call in calls] == [300_000] * 12
