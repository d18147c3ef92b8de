"""Starting and stopping servers: readiness, failures, and that nothing is left behind."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks import proc, servers
from benchmarks.servers import DidNotStart, Kind, running
from tests.benchmarks.test_proc import wait_until_gone

LISTENS = """
import os, socket, subprocess, sys
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
listener.accept()
child.wait()
"""


def kind(program: str, *, announces: bool = False) -> Kind:
    def command(_directory: Path, port: int) -> Sequence[str]:
        return [sys.executable, "-c", program, str(port)]

    return Kind("server", command, version="1", announces=announces)


def test_a_server_is_ready_once_it_listens_and_ends_with_its_children(tmp_path: Path) -> None:
    with running(kind(LISTENS), tmp_path) as server:
        assert server.address.startswith("127.0.0.1:")
        inside = proc.members(proc.snapshot(), server.pid)
        assert server.pid in inside
        assert server.ready_seconds > 0
    wait_until_gone(inside)


def test_an_address_can_be_announced(tmp_path: Path) -> None:
    program = "import time; print('ready grpc=127.0.0.1:7 http=none', flush=True); time.sleep(60)"
    with running(kind(program, announces=True), tmp_path) as server:
        assert server.address == "127.0.0.1:7"


@pytest.mark.parametrize("announces", [True, False])
def test_a_server_that_ends_shows_its_log(tmp_path: Path, announces: bool) -> None:
    program = "raise SystemExit('no such luck')"
    with (
        pytest.raises(DidNotStart, match=r"server: ended(.|\n)*no such luck"),
        running(kind(program, announces=announces), tmp_path),
    ):
        pass


def test_an_unexpected_first_line_is_shown(tmp_path: Path) -> None:
    with (
        pytest.raises(DidNotStart, match="hello"),
        running(kind("print('hello')", announces=True), tmp_path),
    ):
        pass


@pytest.mark.parametrize(
    ("make", "name", "expected"),
    [
        (servers.bazel_remote, "bazel-remote", "uncompressed"),
        (servers.buildbox_casd, "buildbox-casd", "127.0.0.1:5"),
        (servers.nativelink, "nativelink", "nativelink.json5"),
        (servers.buildgrid, "buildgrid", "buildgrid.yml"),
    ],
)
def test_a_peer_that_is_not_there_still_has_a_name(
    make: object, name: str, expected: str, tmp_path: Path
) -> None:
    assert callable(make)
    peer = make(tmp_path / "absent")
    assert isinstance(peer, Kind)
    assert (peer.name, peer.version) == (name, "unknown")
    assert any(expected in argument for argument in peer.command(tmp_path, 5))
