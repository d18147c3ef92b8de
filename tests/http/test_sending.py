"""Content out of files, to clients that take it slowly or not at all."""

from __future__ import annotations

import contextlib
import time
from contextlib import closing
from pathlib import Path

import pytest

from cas.http import sending
from cas.metrics import families
from cas.metrics.board import new_board
from cas.metrics.instruments import Metrics
from tests.http.serving import PATIENCE, Served, local_store, serving, sha, some_bytes
from tests.metrics.reading import value

MIB = 1 << 20


def ask(name: str) -> bytes:
    return f"GET /cas/{name} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


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


def test_a_client_that_takes_no_more_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "STALL_SECONDS", 0.5)
    data = some_bytes(48 * MIB, 2)
    with (
        closing(new_board()) as board,
        local_store(tmp_path / "store") as store,
        serving(store, metrics=(metrics := Metrics(board.sheet(0)))) as own,
    ):
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
