"""Content out of files, to clients that take it slowly or not at all."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from cas.http import sending
from cas.metrics import families
from cas.metrics.board import new_board
from cas.metrics.instruments import Metrics
from cas.store.interface import BlobStore
from cas.store.local import LocalStore
from tests.http.serving import PATIENCE, Served, local_store, serving, sha, some_bytes
from tests.metrics.reading import value

MIB = 1 << 20
SMALL = 64 << 10
"""What the store lends."""


def ask(name: str) -> bytes:
    return f"GET /cas/{name} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


def wait_until_nothing_is_lent(store: BlobStore) -> None:
    """A client may have its answer a moment before the store has what it lent."""
    assert isinstance(store, LocalStore)
    deadline = time.monotonic() + PATIENCE
    while store._index.reader_transactions():
        assert time.monotonic() < deadline, "a snapshot is held"
        time.sleep(0.01)


@contextmanager
def counted(directory: Path) -> Iterator[tuple[Served, BlobStore, Metrics]]:
    """A store that is served, and what is counted of that."""
    with (
        closing(new_board()) as board,
        local_store(directory) as store,
        serving(store, metrics=(metrics := Metrics(board.sheet(0)))) as own,
    ):
        yield own, store, metrics


def test_a_large_file_at_a_slow_clients_pace(served: Served) -> None:
    data = some_bytes(40 * MIB + 77, 1)
    served.put(f"/cas/{sha(data)}", data)
    with served.connected() as opened:
        opened.sendall(ask(sha(data)))
        answer = opened.makefile("rb")
        taken = bytearray(answer.read(5 * MIB))
        # Meanwhile its socket is full, and others are served.
        assert served.get(f"/cas/{sha(data)}").body == data
        head, _, rest = bytes(taken).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        assert rest + answer.read(len(data) - len(rest)) == data
        # The connection is good for another.
        opened.sendall(ask(sha(b"")))
        assert answer.readline() == b"HTTP/1.1 200 OK\r\n"


def test_what_the_store_lends_at_a_slow_clients_pace(tmp_path: Path) -> None:
    data = some_bytes(SMALL, 3)
    count = 400
    with counted(tmp_path / "store") as (own, store, metrics):
        own.put(f"/cas/{sha(data)}", data)
        with own.connected() as opened:
            opened.settimeout(PATIENCE)
            asking = threading.Thread(target=opened.sendall, args=(ask(sha(data)) * count,))
            asking.start()
            served = -1.0
            while served != (served := value(metrics, families.REQUESTS, "http", "GET", "200", "")):
                time.sleep(0.3)
            # Its socket is full, and nothing of the index is held for it.
            assert served < count
            assert own.get(f"/cas/{sha(data)}").body == data
            wait_until_nothing_is_lent(store)
            answers = opened.makefile("rb")
            for _ in range(count):
                assert answers.readline() == b"HTTP/1.1 200 OK\r\n"
                while answers.readline() != b"\r\n":
                    pass
                assert answers.read(SMALL) == data
            asking.join(PATIENCE)


@pytest.mark.parametrize("size", [(8 << 10) - 1, 8 << 10, SMALL], ids=str)
def test_nothing_lent_is_kept(tmp_path: Path, size: int) -> None:
    data = some_bytes(size, 4)
    path = f"/cas/{sha(data)}"
    with local_store(tmp_path / "store") as store, serving(store) as own:
        own.put(path, data)
        assert own.get(path).body == data
        assert own.get(path, Range="bytes=5-8000").body == data[5:8001]
        assert own.get(path, Range=f"bytes={size}-").status == 416
        assert own.get(path, If_None_Match=f'"{sha(data)}"').status == 304
        assert own.get(path, Accept_Encoding="zstd").body == data
        head = own.ask("HEAD", path)
        assert head.headers["content-length"] == str(size)
        assert own.ask("PUT", path, iter([data[:100], data[100:]])).status == 200
        assert own.get(path).body == data
        wait_until_nothing_is_lent(store)


def test_a_client_that_takes_no_more_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "STALL_SECONDS", 0.5)
    data = some_bytes(48 * MIB, 2)
    with counted(tmp_path / "store") as (own, _, metrics):
        own.put(f"/cas/{sha(data)}", data)
        with own.connected() as opened:
            opened.settimeout(PATIENCE)
            opened.sendall(ask(sha(data)))
            taken = len(opened.recv(1000))
            deadline = time.monotonic() + PATIENCE
            while not value(metrics, families.REQUESTS, "http", "GET", "499", ""):
                assert time.monotonic() < deadline, "the request ends"
                time.sleep(0.02)
            with contextlib.suppress(ConnectionResetError):
                while part := opened.recv(MIB):
                    taken += len(part)
        assert 0 < taken < len(data)
        assert own.get(f"/cas/{sha(data)}").body == data
