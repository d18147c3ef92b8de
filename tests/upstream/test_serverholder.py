"""Nodes in front of `cas serve`, as what lies upstream: real servers, real connections."""

from __future__ import annotations

import os
import random
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
import trustme

from cas import digest as digests
from cas.errors import ConfigError, DataLoss, NotFound, Unavailable
from cas.metrics import families
from cas.metrics.instruments import Metrics
from cas.pb import remote_execution_pb2 as pb
from cas.store.directory import prepare
from cas.store.interface import NewAction
from cas.store.local import LocalStore, open_store
from cas.upstream.identity import Files
from cas.upstream.memory import MemoryOptions
from cas.upstream.opening import TierOptions, open_before
from cas.upstream.serverholder import connect
from cas.upstream.store import TieredStore
from cas.upstream.trying import Patience
from tests.conformance.client import Client
from tests.server.serving import PATIENCE, Server, end, gone, spawn
from tests.upstream.test_tier import fetched, opened, present, put, read, until

MIB = 1 << 20
CI = "token-of-continuous-integration"
READER = "token-of-one-who-reads"
TOKENS = f"ci {CI}\nreader {READER}\n"
RULES = """
[[access]]
role = "write"
principal = "token:ci"
[[access]]
role = "read"
principal = "token:reader"
"""


def some_bytes(size: int) -> bytes:
    return os.urandom(min(size, 1 << 16)) + random.Random(size).randbytes(max(0, size - (1 << 16)))


def serve(directory: Path, *more: str) -> Server:
    server = spawn(
        directory / "log",
        ["--dir", str(directory / "store"), "--http", "none", "--workers", "1", *more],
    )
    server.await_ready()
    return server


def stop(server: Server) -> None:
    server.process.kill()
    server.process.wait(PATIENCE)
    for pid in [*server.workers(), *server.again(), server.janitor()]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        until(lambda: gone(pid))  # noqa: B023
    assert server.process.stdout is not None
    server.process.stdout.close()


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One that tests leave as it is."""
    server = serve(tmp_path_factory.mktemp("upstream"), "--grpc", "127.0.0.1:0")
    yield server
    end(server)


class Node:
    def __init__(self, store: TieredStore, metrics: Metrics) -> None:
        self.store = store
        self._sheet = metrics.sheet

    def asked(self, operation: str, outcome: str = "ok") -> int:
        """Requests upstream."""
        return int(self._sheet.value(families.UPSTREAM_REQUESTS, operation, outcome))

    def is_down(self) -> bool:
        return bool(self._sheet.value(families.UPSTREAM_DOWN))


Start = Callable[..., Node]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Start]:
    """A node, whose disk is empty, in front of the server at that address."""
    with ExitStack() as stack:

        def start(
            url: str, files: Files | None = None, instance: str | None = None, sends: bool = True,
            timeout: float = 20.0,
        ) -> Node:  # fmt: skip
            directory = tmp_path / f"node-{os.urandom(4).hex()}"
            stack.callback(prepare(directory).close)
            local: LocalStore = open_store(directory)
            stack.callback(local.close)
            metrics = Metrics()
            options = TierOptions(
                Patience(timeout, 16), MemoryOptions(absent_seconds=0.0), sends=sends
            )
            url = url if ":/" in url else f"grpc://{url}"
            store = open_before(local, connect(url, files or Files(), instance), options, metrics)
            stack.callback(store.close)
            return Node(store, metrics)

        yield start


class TestBlobs:
    @pytest.mark.parametrize("size", [1, 40_000, 300_000, MIB + 1, 9_000_000])
    def test_what_one_node_takes_another_gives(
        self, node: Start, upstream: Server, size: int
    ) -> None:
        data = some_bytes(size)
        [digest] = put(node(upstream.address).store, data)
        with Client(upstream.address) as client:
            assert client.read(f"blobs/{digest.hex}/{size}") == data
        other = node(upstream.address).store
        assert present(other, [digest]) == {digest.key}
        assert fetched(other, digest) == data
        until(lambda: other.contains(digest))

    def test_what_nobody_has_is_not_found(self, node: Start, upstream: Server) -> None:
        with pytest.raises(NotFound):
            opened(node(upstream.address).store, digests.of(os.urandom(20)))

    def test_a_thousand_digests_are_one_request(self, node: Start, upstream: Server) -> None:
        contents = [os.urandom(20) for _ in range(10)]
        found = put(node(upstream.address).store, *contents)
        asks = node(upstream.address)
        absent = [digests.of(os.urandom(20)) for _ in range(990)]
        assert present(asks.store, [*found, *absent]) == {digest.key for digest in found}
        assert asks.asked("head") == 1

    def test_small_blobs_go_and_come_together(self, node: Start, upstream: Server) -> None:
        fills = node(upstream.address)
        contents = [os.urandom(2_000) for _ in range(200)]
        found = put(fills.store, *contents)
        # Each is asked for, and sent, once it is committed here: some at a time.
        assert fills.asked("head") <= 60
        assert fills.asked("put") <= 60
        reads = node(upstream.address)
        reads.store.beyond.bring(found)
        until(lambda: len(reads.store.present([digest.key for digest in found])) == 200)
        assert reads.asked("get") <= 20

    def test_a_blob_is_found_by_its_hash_once_its_size_was_heard_of(
        self, node: Start, upstream: Server
    ) -> None:
        [digest] = put(node(upstream.address).store, os.urandom(30))
        store = node(upstream.address).store
        prefix = digest.key[:33]
        assert store.beyond.find(prefix).wait(PATIENCE) is None
        assert present(store, [digest]) == {digest.key}
        assert store.beyond.find(prefix).wait(PATIENCE) == digest

    def test_who_reads_far_ahead_asks_for_himself(self, node: Start, upstream: Server) -> None:
        data = some_bytes(16 * MIB)
        [digest] = put(node(upstream.address).store, data)
        store = node(upstream.address).store
        assert read(opened(store, digest), 15 * MIB) == data[15 * MIB :]
        until(lambda: store.contains(digest))

    def test_what_it_has_no_digest_function_for_stays_here(
        self, node: Start, upstream: Server
    ) -> None:
        asks = node(upstream.address)
        data = os.urandom(50)
        hasher = digests.MD5.new(50)
        hasher.update(data)
        digest = digests.make(digests.MD5, hasher.digest(), 50)
        [pending] = asks.store.put([(digest, data)])
        pending.wait(PATIENCE)
        new = NewAction(b"", [digest.key], expanded=True)
        asks.store.put_action("", digest, new).wait(PATIENCE)
        assert present(asks.store, [digest]) == set()
        assert asks.store.beyond.action("", digest).wait(PATIENCE) is None
        with pytest.raises(NotFound):
            opened(asks.store, digests.make(digests.MD5, bytes(16), 50))
        assert asks.asked("head") == asks.asked("put") == asks.asked("get") == 0


class TestActions:
    RESULT = pb.ActionResult(stdout_raw=b"out", exit_code=3).SerializeToString()

    def test_it_goes_and_comes_byte_for_byte(self, node: Start, upstream: Server) -> None:
        # In an order that protobuf does not write, and with a field that it does not know.
        code = pb.ActionResult(exit_code=4).SerializeToString()
        result = pb.ActionResult(stdout_raw=b"out").SerializeToString() + b"\xf8\x07\x01" + code
        [blob] = put(node(upstream.address).store, b"named")
        action = digests.of(os.urandom(20))
        new = NewAction(result, [blob.key], expanded=True)
        node(upstream.address).store.put_action("main/x", action, new).wait(PATIENCE)
        other = node(upstream.address).store.beyond
        assert other.action("main/x", action).wait(PATIENCE) == result
        assert other.action("main", action).wait(PATIENCE) is None

    def test_one_of_which_only_the_hash_is_known(self, node: Start, upstream: Server) -> None:
        action = digests.of(os.urandom(20))
        by_hash = digests.make(action.function, action.hash, 0)
        new = NewAction(self.RESULT, [], expanded=True)
        node(upstream.address).store.put_action("", by_hash, new).wait(PATIENCE)
        beyond = node(upstream.address).store.beyond
        assert beyond.action("", by_hash).wait(PATIENCE) == self.RESULT
        assert beyond.action("", action).wait(PATIENCE) == self.RESULT

    @pytest.mark.parametrize(
        ("path", "fixed", "here", "there"),
        [
            ("", None, "", ""),
            ("", None, "x/y", "x/y"),
            ("/team", None, "", "team"),
            ("/team", None, "x", "team/x"),
            ("/team", "all", "x", "all"),
            ("/team", "", "x", ""),
        ],
        ids=["plain", "same", "below", "joined", "fixed", "nameless"],
    )
    def test_instances(
        self, node: Start, upstream: Server, path: str, fixed: str | None, here: str, there: str
    ) -> None:
        action = digests.of(os.urandom(20))
        store = node(f"grpc://{upstream.address}{path}", instance=fixed).store
        store.put_action(here, action, NewAction(self.RESULT, [], expanded=True)).wait(PATIENCE)
        with Client(upstream.address) as client:
            request = pb.GetActionResultRequest(
                instance_name=there,
                action_digest=pb.Digest(hash=action.hex, size_bytes=action.size),
            )
            assert client.get_action_result(request, timeout=PATIENCE).exit_code == 3


class TestDamage:
    @pytest.mark.parametrize("size", [100_000, 3 * MIB], ids=["batch", "stream"])
    def test_it_is_told_and_not_kept_and_sent_again(
        self, node: Start, upstream: Server, size: int
    ) -> None:
        data = some_bytes(size)
        [digest] = put(node(upstream.address).store, data)
        [path] = (Path(upstream.log).parent / "store" / "blobs").rglob(f"{digest.hex}.*")
        path.write_bytes(b"x" + data[1:] if data[:1] != b"x" else b"y" + data[1:])
        reads = node(upstream.address)
        assert present(reads.store, [digest]) == {digest.key}
        with pytest.raises(DataLoss, match=digest.hex):
            fetched(reads.store, digest)
        assert not reads.store.contains(digest)
        assert present(reads.store, [digest]) == set()
        with pytest.raises(NotFound):
            opened(reads.store, digest)
        put(reads.store, data)
        assert fetched(reads.store, digest) == data


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One that asks who calls, on a Unix socket."""
    place = tmp_path_factory.mktemp("guarded")
    (place / "tokens").write_text(TOKENS)
    (place / "cas.toml").write_text(RULES)
    server = serve(
        place, "--grpc", f"unix:{place}/socket", "--anonymous", "none",
        "--tokens", str(place / "tokens"), "--config", str(place / "cas.toml"),
    )  # fmt: skip
    yield server
    stop(server)


class TestRights:
    def test_an_upstream_that_may_only_be_read(
        self, node: Start, guarded: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (tmp_path / "ci").write_text(CI + "\n")
        (tmp_path / "reader").write_text(READER + "\n")
        data = os.urandom(500)
        [there] = put(node(guarded.address, Files(token=tmp_path / "ci")).store, data)
        reader = Files(token=tmp_path / "reader")
        sends = node(guarded.address, reader)
        for size in (100, 400_000) * 4:
            blob = some_bytes(size)
            [pending] = sends.store.put([(digests.of(blob), blob)])
            with pytest.raises(Unavailable, match="PERMISSION_DENIED"):
                pending.wait(PATIENCE)
        result = NewAction(TestActions.RESULT, [], expanded=True)
        with pytest.raises(Unavailable, match="update_enabled"):
            sends.store.put_action("", there, result).wait(PATIENCE)
        assert not sends.is_down()
        assert fetched(sends.store, there) == data
        lines = [r for r in caplog.records if "upstream_writes = none" in r.getMessage()]
        assert len(lines) == 1
        keeps = node(guarded.address, reader, sends=False)
        mine = put(keeps.store, os.urandom(100), some_bytes(2 * MIB))
        keeps.store.beyond.keep([digest.key for digest in mine]).wait(PATIENCE)
        keeps.store.put_action("", there, result).wait(PATIENCE)
        assert keeps.store.action("", there) is not None
        assert fetched(keeps.store, there) == data
        assert keeps.asked("put") == keeps.asked("put", "refused") == 0

    def test_wrong_credentials_are_an_outage_until_the_file_has_others(
        self, node: Start, guarded: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        file = tmp_path / "token"
        file.write_text("wrong-token")
        asks = node(guarded.address, Files(token=file))
        absent = digests.of(os.urandom(9))
        for _ in range(6):
            with pytest.raises(Unavailable):
                opened(asks.store, absent)
        assert asks.is_down()
        assert "wrong-token" not in caplog.text
        file.write_text(CI)

        def answers() -> bool:
            with suppress(Unavailable):
                with pytest.raises(NotFound):
                    opened(asks.store, absent)
                return True
            time.sleep(0.1)
            return False

        until(answers)
        assert not asks.is_down()


class TestOutages:
    def test_it_is_killed_and_comes_back(self, node: Start, tmp_path: Path) -> None:
        (tmp_path / "up").mkdir()
        server = serve(tmp_path / "up", "--grpc", "127.0.0.1:0")
        address = server.address
        try:
            asks = node(address)
            [held] = put(asks.store, b"held")
            [elsewhere] = put(node(address).store, b"elsewhere")
            stop(server)
            with pytest.raises(Unavailable):
                fetched(asks.store, elsewhere)
            assert present(asks.store, [digests.of(b"new")]) == set()
            [pending] = asks.store.put([(digests.of(b"new"), b"new")])
            with pytest.raises(Unavailable):
                pending.wait(PATIENCE)
            assert asks.store.read_small(held) == b"held"
            server = serve(tmp_path / "up", "--grpc", address)

            def answers() -> bool:
                with suppress(Unavailable):
                    return fetched(asks.store, elsewhere) == b"elsewhere"
                time.sleep(0.1)
                return False

            until(answers)
            put(asks.store, b"new")
        finally:
            stop(server)

    def test_it_is_there_and_does_not_answer(self, node: Start, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            host, port = silent.getsockname()
            asks = node(f"{host}:{port}", timeout=0.1)
            with pytest.raises(Unavailable):
                opened(asks.store, digests.of(b"x"))
            assert present(asks.store, [digests.of(b"x")]) == set()

    @pytest.mark.parametrize("way", ["up", "down"])
    def test_what_breaks_off_goes_on_from_there(
        self, node: Start, upstream: Server, way: str
    ) -> None:
        # A server that has not noticed the break yet has the next stream begin anew.
        for _ in range(5):
            data = random.randbytes(24 * MIB)
            with Line(upstream.address) as line:
                if way == "up":
                    line.cut_after(up=20 * MIB)
                    put(node(line.address).store, data)
                else:
                    put(node(upstream.address).store, data)
                    line.cut_after(down=20 * MIB)
                    assert fetched(node(line.address).store, digests.of(data)) == data
                assert line.cuts == 1
            if line.carried[way] < 38 * MIB:
                return
        raise AssertionError(f"{line.carried[way]} bytes went {way} for {len(data)}")


class TestWays:
    def test_tls_with_certificates_of_both(self, node: Start, tmp_path: Path) -> None:
        authority = trustme.CA()
        place = tmp_path / "up"
        place.mkdir()
        files = {"ca": authority.cert_pem}
        for name in ("server", "client"):
            leaf = authority.issue_cert("localhost", "127.0.0.1", common_name=name)
            files[f"{name}.key"] = leaf.private_key_pem
            leaf.cert_chain_pems[0].write_to_path(tmp_path / f"{name}.crt")
        for name, blob in files.items():
            blob.write_to_path(tmp_path / name)
        server = serve(
            place, "--grpc", "127.0.0.1:0", "--tls-cert", str(tmp_path / "server.crt"),
            "--tls-key", str(tmp_path / "server.key"), "--tls-client-ca", str(tmp_path / "ca"),
        )  # fmt: skip
        try:
            url = f"grpcs://{server.address}"
            known = Files(tmp_path / "ca", tmp_path / "client.crt", tmp_path / "client.key")
            [digest] = put(node(url, known).store, b"by TLS")
            assert fetched(node(url, known).store, digest) == b"by TLS"
            with pytest.raises(Unavailable):
                opened(node(url, Files(ca=tmp_path / "ca")).store, digest)
        finally:
            stop(server)

    def test_zstd_on_the_way(
        self, node: Start, upstream: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data = b"compressible " * MIB
        [digest] = put(node(upstream.address).store, data)
        with Line(upstream.address) as line:
            monkeypatch.setattr("cas.client.remote.Remote.local", False)
            assert fetched(node(line.address).store, digest) == data
            assert line.carried["down"] < len(data) / 10

    def test_what_cannot_be_an_upstream(self, tmp_path: Path) -> None:
        for url in ("http://host", "grpc://user:secret@host", "grpc://"):
            with pytest.raises(ConfigError) as raised:
                connect(url, Files(), None)
            assert "secret" not in str(raised.value)
        (tmp_path / "key").write_text("no key")
        with pytest.raises(ConfigError, match="belong together"):
            connect("grpcs://host", Files(key=tmp_path / "key"), None)
        with pytest.raises(ConfigError, match="key"):
            connect("grpcs://host", Files(ca=tmp_path / "key"), None)


class Line:
    """A way to a server that can be cut, and counts what it carries."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.carried = {"up": 0, "down": 0}
        self.cuts = 0
        self._limits: dict[str, int] = {}
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]

    def cut_after(self, **limits: int) -> None:
        """Breaks the connection once so many bytes went `up` or `down`."""
        self._limits = limits

    def __enter__(self) -> Line:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        # Wakes who accepts.
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join()
        for one in self._sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads[1:]:
            thread.join()
        for one in self._sockets:
            one.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(self._target)
            self._sockets += (near, far)
            for way, source, target in (("up", near, far), ("down", far, near)):
                thread = threading.Thread(target=self._carry, args=(way, source, target))
                self._threads.append(thread)
                thread.start()

    def _carry(self, way: str, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                self.carried[way] += len(data)
                if self.carried[way] > self._limits.get(way, 1 << 60):
                    self._limits = {}
                    self.cuts += 1
                    break
                target.sendall(data)
        for one in (source, target):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
