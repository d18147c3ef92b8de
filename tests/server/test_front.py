"""HTTP beside gRPC in one server: one store, one drain, one supervisor."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import socket
import time
import uuid
from pathlib import Path
from typing import Any

import grpc
import pytest

from cas.pb import bytestream_pb2 as bs
from cas.pb import remote_execution_pb2 as pb
from tests.server.serving import PATIENCE, Server, Start, channel, gone, until

RE = "/build.bazel.remote.execution.v2."


def ask(
    server: Server, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, bytes]:
    if server.http.startswith("unix:"):
        connection = http.client.HTTPConnection("localhost", timeout=PATIENCE)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(server.http.removeprefix("unix:"))
    else:
        connection = http.client.HTTPConnection(server.http, timeout=PATIENCE)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def action_result(*blobs: bytes) -> pb.ActionResult:
    result = pb.ActionResult(exit_code=3)
    for number, blob in enumerate(blobs):
        digest = pb.Digest(hash=sha(blob), size_bytes=len(blob))
        result.output_files.add(path=f"out{number}", digest=digest)
    return result


def test_what_is_written_over_grpc_is_read_over_http_and_vice_versa(start: Start) -> None:
    server = start("--http", "127.0.0.1:0")
    small, large = os.urandom(500), os.urandom(300_000)
    result = action_result(small, large)
    with channel(server) as opened:
        write = opened.stream_unary(
            "/google.bytestream.ByteStream/Write",
            bs.WriteRequest.SerializeToString,
            bs.WriteResponse.FromString,
        )
        read = opened.unary_stream(
            "/google.bytestream.ByteStream/Read",
            bs.ReadRequest.SerializeToString,
            bs.ReadResponse.FromString,
        )
        get = opened.unary_unary(
            f"{RE}ActionCache/GetActionResult",
            pb.GetActionResultRequest.SerializeToString,
            pb.ActionResult.FromString,
        )
        update = opened.unary_unary(
            f"{RE}ActionCache/UpdateActionResult",
            pb.UpdateActionResultRequest.SerializeToString,
            pb.ActionResult.FromString,
        )
        for data in (small, large):
            name = f"uploads/{uuid.uuid4()}/blobs/{sha(data)}/{len(data)}"
            request = bs.WriteRequest(resource_name=name, finish_write=True, data=data)
            write(iter([request]), timeout=PATIENCE)
            assert ask(server, "GET", f"/cas/{sha(data)}") == (200, data)
        digest = pb.Digest(hash=sha(b"an action"), size_bytes=9)
        asked = pb.UpdateActionResultRequest(
            instance_name="a/b", action_digest=digest, action_result=result
        )
        update(asked, timeout=PATIENCE)
        path = f"/a/b/ac/{digest.hash}"
        assert ask(server, "GET", path) == (200, result.SerializeToString())
        assert ask(server, "GET", f"/ac/{digest.hash}")[0] == 404

        other = os.urandom(200_000)
        assert ask(server, "PUT", f"/x/cas/{sha(other)}", other)[0] == 200
        name = f"blobs/{sha(other)}/{len(other)}"
        parts = read(bs.ReadRequest(resource_name=name), timeout=PATIENCE)
        assert b"".join(part.data for part in parts) == other
        path = f"/c/ac/{sha(b'another action')}"
        written = action_result(other).SerializeToString()
        assert ask(server, "PUT", path, written)[0] == 200
        digest = pb.Digest(hash=sha(b"another action"), size_bytes=14)
        wanted = pb.GetActionResultRequest(instance_name="c", action_digest=digest)
        assert get(wanted, timeout=PATIENCE) == action_result(other)

        # What is no ActionResult is never served as one.
        opaque = b"\xcc\xac" + os.urandom(100)
        path = f"/c/ac/{sha(b'a third')}"
        assert ask(server, "PUT", path, opaque)[0] == 200
        assert ask(server, "GET", path) == (200, opaque)
        wanted.action_digest.CopyFrom(pb.Digest(hash=sha(b"a third"), size_bytes=7))
        with pytest.raises(grpc.RpcError) as caught:
            get(wanted, timeout=PATIENCE)
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_http_alone_on_a_unix_socket(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    server = start("--grpc", "none", "--http", f"unix:{path}")
    assert server.ready == f"ready grpc=none http=unix:{path}\n"
    assert server.workers() == []
    data = os.urandom(100)
    assert ask(server, "PUT", f"/cas/{sha(data)}", data)[0] == 200
    assert ask(server, "GET", f"/cas/{sha(data)}") == (200, data)
    server.process.terminate()
    assert server.ends() == 0
    assert not path.exists()


def test_a_request_that_runs_may_finish_in_the_drain(start: Start) -> None:
    server = start("--http", "127.0.0.1:0")
    data = os.urandom(2 << 20)
    host, port = server.http.split(":")
    with socket.create_connection((host, int(port)), PATIENCE) as slow:
        slow.sendall(f"PUT /cas/{sha(data)} HTTP/1.1\r\nHost: x\r\n".encode())
        slow.sendall(f"Content-Length: {len(data)}\r\n\r\n".encode() + data[:1_500_000])
        # It runs for sure: what was sent so far is more than sockets hold.
        time.sleep(0.3)
        server.process.terminate()
        until(lambda: bool(server.events("draining")), "the drain")
        slow.sendall(data[1_500_000:])
        response = http.client.HTTPResponse(slow)
        response.begin()
        assert response.status == 200
        response.close()
    assert server.ends() == 0
    server = start("--http", "127.0.0.1:0")
    assert ask(server, "GET", f"/cas/{sha(data)}") == (200, data)


def test_a_killed_front_is_replaced_and_lost_nothing(start: Start) -> None:
    server = start("--http", "127.0.0.1:0")
    data = os.urandom(150_000)
    assert ask(server, "PUT", f"/cas/{sha(data)}", data)[0] == 200
    front = server.front()
    assert not gone(front)
    server.kill(front)
    until(lambda: bool(server.again()), "another front")
    assert ask(server, "GET", f"/cas/{sha(data)}") == (200, data)
    server.process.terminate()
    assert server.ends() == 0


def test_idle_connections_do_not_hold_up_the_drain(start: Start) -> None:
    server = start("--http", "127.0.0.1:0", "--drain-timeout", "3600")
    kept = http.client.HTTPConnection(server.http, timeout=PATIENCE)
    kept.request("GET", f"/cas/{sha(b'')}")
    assert kept.getresponse().read() == b""
    server.process.terminate()
    assert server.ends() == 0
    kept.close()


def test_the_past_and_its_errors_outlive_who_keeps_them(start: Start) -> None:
    server = start("--http", "127.0.0.1:0")

    def told(page: str) -> Any:
        try:
            status, body = ask(server, "GET", f"/-/{page}")
        except OSError:
            return None
        return json.loads(body) if status == 200 else None

    def noted() -> set[tuple[str, str]]:
        return {(what, code) for _, _, _, what, code, *_ in told("now")["notes"]}

    before = told("past")["hour"]["at"]
    assert ask(server, "PUT", f"/main/cas/{sha(b'a')}", b"b")[0] == 400
    until(lambda: ("PUT", "400") in noted(), "its note")
    server.kill(server.front())
    until(lambda: told("past") is not None, "another front")
    assert told("past")["hour"]["at"][0] == before[0]
    assert {("PUT", "400"), ("cas.server.supervisor", "error")} <= noted()
    assert ask(server, "GET", "/")[1].startswith(b"<!doctype html>")
