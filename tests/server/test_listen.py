"""Holding an address: nobody else gets it, nobody else's is taken."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

import pytest

from cas.options import TcpAddress, UnixAddress
from cas.server import listen
from cas.server.listen import AddressUnavailable

LOCAL = "127.0.0.1"


def port_of(shown: str) -> int:
    return int(shown.rpartition(":")[2])


def refused(said: str) -> pytest.RaisesExc[AddressUnavailable]:
    return pytest.raises(AddressUnavailable, match=re.escape(said))


def shared_listener(port: int) -> socket.socket:
    """A listener as a worker of ours, or of anybody who uses SO_REUSEPORT, would have it."""
    opened = socket.socket()
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    opened.bind((LOCAL, port))
    opened.listen()
    return opened


def test_port_0_becomes_a_port_that_workers_can_share() -> None:
    with listen.reserve(TcpAddress(LOCAL, 0)) as reserved:
        port = port_of(reserved.shown)
        assert reserved.shown == f"{LOCAL}:{port}"
        assert reserved.addresses == (reserved.shown,)
        assert reserved.shared
        with shared_listener(port), shared_listener(port):
            socket.create_connection((LOCAL, port), timeout=5).close()


def test_a_held_port_is_held_against_another_server() -> None:
    with listen.reserve(TcpAddress(LOCAL, 0)) as reserved:
        address = TcpAddress(LOCAL, port_of(reserved.shown))
        with refused(f"{address}: it is in use by another process"), listen.reserve(address):
            pytest.fail("reserved twice")


def test_a_listener_that_would_share_its_port_is_still_in_the_way() -> None:
    with shared_listener(0) as other:
        address = TcpAddress(LOCAL, other.getsockname()[1])
        with refused("it is in use by another process"), listen.reserve(address):
            pytest.fail("reserved a port that is served")


def test_closed_connections_of_an_earlier_server_are_not_in_the_way() -> None:
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((LOCAL, 0))
        server.listen()
        port = server.getsockname()[1]
        with socket.create_connection((LOCAL, port), timeout=5) as client:
            accepted, _ = server.accept()
            # The side that closes first keeps the port in TIME_WAIT.
            accepted.close()
            assert client.recv(1) == b""
    with listen.reserve(TcpAddress(LOCAL, port)) as reserved:
        assert reserved.shown == f"{LOCAL}:{port}"
        shared_listener(port).close()


def test_every_address_of_a_name_gets_the_same_port() -> None:
    with listen.reserve(TcpAddress("localhost", 0)) as reserved:
        port = port_of(reserved.shown)
        assert reserved.shown == f"localhost:{port}"
        assert {port_of(address) for address in reserved.addresses} == {port}
        assert f"{LOCAL}:{port}" in reserved.addresses


@pytest.mark.parametrize(
    ("address", "said"),
    [
        # TEST-NET-1 and .invalid are nobody's, by RFC 5737 and RFC 6761.
        (TcpAddress("192.0.2.1", 0), "cannot serve on 192.0.2.1:0: Cannot assign"),
        (TcpAddress("name.invalid", 80), "cannot resolve name.invalid:80: "),
    ],
)
def test_an_address_that_is_not_ours(address: TcpAddress, said: str) -> None:
    with refused(said), listen.reserve(address):
        pytest.fail("reserved")


def test_a_stale_socket_file_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "cas.sock"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    with listen.reserve(UnixAddress(str(path))) as reserved:
        assert not path.exists()
        assert reserved.shown == f"unix:{path}"
        assert not reserved.shared


def test_a_socket_that_somebody_listens_on_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "cas.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen(0)
        inode = path.stat().st_ino
        # Twice: the first probe fills the backlog.
        for _ in range(2):
            with refused("it is in use"), listen.reserve(UnixAddress(str(path))):
                pytest.fail("reserved a socket that is served")
        assert path.stat().st_ino == inode


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes"
    path.write_text("mine")
    with refused("the file there is not a socket"), listen.reserve(UnixAddress(str(path))):
        pytest.fail("reserved a file")
    assert path.read_text() == "mine"


def test_the_socket_file_is_gone_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "cas.sock"
    with listen.reserve(UnixAddress(str(path))), socket.socket(socket.AF_UNIX) as worker:
        worker.bind(str(path))
        worker.listen()
    assert not os.path.lexists(path)


def test_none_reserves_nothing() -> None:
    with listen.reserve(None) as reserved:
        assert (reserved.shown, reserved.addresses) == ("none", ())
