"""What the service manager hears, on the socket that it listens on."""

from __future__ import annotations

import contextlib
import math
import secrets
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from cas.server.manager import VARIABLES, Manager, watchdog_interval
from tests.server.serving import PATIENCE, Start, environ_of


def listener(address: str) -> socket.socket:
    opened = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    opened.settimeout(PATIENCE)
    opened.bind(address.replace("@", "\0"))
    return opened


def hear(opened: socket.socket) -> dict[str, str]:
    """The next message, by name."""
    return dict(line.split("=", 1) for line in opened.recv(4096).decode().split("\n"))


@pytest.fixture(params=["path", "abstract"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "notify") if request.param == "path" else f"@cas-{secrets.token_hex(8)}"


@pytest.fixture
def opened(address: str) -> Iterator[socket.socket]:
    with listener(address) as opened:
        yield opened


def test_each_message_as_sd_notify_has_it(address: str, opened: socket.socket) -> None:
    manager = Manager({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "3000000"})
    manager.ready("serving")
    assert hear(opened) == {"READY": "1", "STATUS": "serving"}
    manager.alive(100.0)
    assert hear(opened) == {"WATCHDOG": "1"}
    manager.alive(101.4)
    manager.stopping(62.5)
    # Not a second sign of life: it was not due.
    assert hear(opened) == {
        "STOPPING": "1",
        "STATUS": "draining",
        "EXTEND_TIMEOUT_USEC": "62500000",
    }
    manager.alive(101.5)
    assert hear(opened) == {"WATCHDOG": "1"}
    manager.close()


def test_signs_of_life_are_only_for_who_asks(address: str, opened: socket.socket) -> None:
    manager = Manager({"NOTIFY_SOCKET": address})
    assert manager.interval == math.inf
    manager.alive(100.0)
    manager.ready("")
    assert "READY" in hear(opened)
    manager.close()


@pytest.mark.parametrize("text", ["", "vsock:2:1234", "relative/path", "/nobody/listens"])
def test_a_manager_that_cannot_be_told_is_no_failure(text: str) -> None:
    manager = Manager({"NOTIFY_SOCKET": text, "WATCHDOG_USEC": "2"})
    manager.ready("serving")
    manager.alive(1.0)
    manager.stopping(1.0)
    manager.close()


def test_a_manager_too_busy_to_listen_is_not_waited_for_forever(
    address: str, opened: socket.socket
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as filler:
        filler.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                filler.sendto(b"x", address.replace("@", "\0"))
    manager = Manager({"NOTIFY_SOCKET": address})
    manager.ready("serving")
    manager.close()


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, math.inf),
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "7"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "8"}, math.inf),
        ({"WATCHDOG_USEC": "0"}, math.inf),
        ({"WATCHDOG_USEC": "-1"}, math.inf),
        ({"WATCHDOG_USEC": "soon"}, math.inf),
        ({"WATCHDOG_USEC": "²"}, math.inf),
    ],
)
def test_how_often_a_sign_of_life_is_asked_for(environ: dict[str, str], seconds: float) -> None:
    assert watchdog_interval(environ, 7) == seconds


def test_a_server_says_when_it_serves_lives_and_ends(
    tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    monkeypatch.setenv("WATCHDOG_USEC", "100000")
    with listener(address) as opened:
        server = start("--drain-timeout", "7")
        said = {"READY": "1", "STATUS": f"serving grpc={server.address} http=none"}
        assert await_message(opened, "READY") == said
        await_message(opened, "WATCHDOG")
        for pid in [*server.workers(), server.janitor()]:
            variables = environ_of(pid)
            assert "PATH" in variables
            assert not VARIABLES & variables.keys()
        server.process.send_signal(signal.SIGTERM)
        stopping = await_message(opened, "STOPPING")
        assert int(stopping["EXTEND_TIMEOUT_USEC"]) > 7_000_000
        assert server.ends() == 0


def await_message(opened: socket.socket, name: str) -> dict[str, str]:
    """The next message that has `name`; no other but signs of life before it."""
    while name not in (message := hear(opened)):
        assert message == {"WATCHDOG": "1"}
    return message
