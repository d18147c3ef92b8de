"""What an operator asks of a running server, over gRPC on both engines and by ``cas admin``."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from cas.cli import main
from cas.pb import admin_pb2
from cas.pb import remote_execution_pb2 as pb
from tests.access.serving import (
    DENIED,
    PASSWORD,
    TOKENS,
    UNAUTHENTICATED,
    ask,
    basic,
    bearer,
    serving,
    written,
)
from tests.conformance.client import Blob, Client, fails, fresh, request_metadata
from tests.server.serving import PATIENCE, Server

Metadata = tuple[tuple[str, str | bytes], ...]

ADMIN: Metadata = (("authorization", bearer(TOKENS["admin"])),)
WRITER: Metadata = (("authorization", bearer(TOKENS["writer"])),)


@pytest.fixture(scope="module", params=["cq", "aio"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp(f"admin-{request.param}")
    arguments = written(directory / "files")
    rules = directory / "files" / "cas.toml"
    rules.write_text(
        rules.read_text()
        + '\n[[access]]\nrole = "admin"\nprincipal = "user:bob"\ninstance = "mine"\n'
    )
    with serving(directory / "server", *arguments, "--engine", request.param) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Client]:
    with Client(server.address) as client:
        yield client


ANSWERS: dict[str, Any] = {
    "GetRecord": admin_pb2.Record,
    "ListRecords": admin_pb2.ListRecordsResponse,
    "DeleteActionResult": admin_pb2.DeleteResponse,
    "DeleteBlob": admin_pb2.DeleteResponse,
    "DropInstance": admin_pb2.DropInstanceResponse,
}


def admin(client: Client, method: str, request: Any, metadata: Metadata = ADMIN) -> Any:
    call: Any = client.channel.unary_unary(
        f"/cas.admin.v1.Admin/{method}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=ANSWERS[method].FromString,
    )
    return call(request, timeout=PATIENCE, metadata=metadata)


def acted(client: Client, instance: str, metadata: Metadata = WRITER) -> pb.Digest:
    """An action whose result the server has."""
    digest = fresh(20).digest
    request = pb.UpdateActionResultRequest(
        instance_name=instance, action_digest=digest, action_result=pb.ActionResult(exit_code=3)
    )
    client.update_action_result(request, timeout=PATIENCE, metadata=metadata)
    return digest


def named(instance: str, action: pb.Digest) -> admin_pb2.ActionResultRequest:
    return admin_pb2.ActionResultRequest(instance_name=instance, action_digest=action)


def result(client: Client, instance: str, action: pb.Digest) -> pb.ActionResult:
    request = pb.GetActionResultRequest(instance_name=instance, action_digest=action)
    found: pb.ActionResult = client.get_action_result(request, timeout=PATIENCE, metadata=ADMIN)
    return found


def uploaded(client: Client, size: int = 50_000) -> Blob:
    blob = fresh(size)
    client.upload(blob, metadata=WRITER)
    return blob


ABSENT = pb.Digest(hash="0" * 64, size_bytes=1)

REQUESTS: dict[str, Any] = {
    "GetRecord": named("main", ABSENT),
    "ListRecords": admin_pb2.ListRecordsRequest(instance_name="main"),
    "DeleteActionResult": named("main", ABSENT),
    "DeleteBlob": admin_pb2.DeleteBlobRequest(digest=ABSENT),
    "DropInstance": admin_pb2.DropInstanceRequest(instance_name="never"),
}


@pytest.mark.parametrize("method", REQUESTS)
def test_every_method_takes_an_admin(client: Client, method: str) -> None:
    with fails(UNAUTHENTICATED):
        admin(client, method, REQUESTS[method], ())
    for role in ("none", "reader", "writer", "main"):
        with fails(DENIED, f"token:{role} may not administer"):
            admin(client, method, REQUESTS[method], (("authorization", bearer(TOKENS[role])),))


def test_an_admin_of_one_instance_cannot_touch_what_all_share(client: Client) -> None:
    bob: Metadata = (("authorization", basic("bob", PASSWORD)),)
    blob = uploaded(client)
    with fails(DENIED, "user:bob may not administer in all instances"):
        admin(client, "DeleteBlob", admin_pb2.DeleteBlobRequest(digest=blob.digest), bob)
    action = acted(client, "mine")
    assert admin(client, "GetRecord", named("mine", action), bob).principal == "token:writer"
    with fails(DENIED):
        admin(client, "DropInstance", admin_pb2.DropInstanceRequest(instance_name="main"), bob)


def test_who_wrote_an_action_result(client: Client, server: Server) -> None:
    before = time.time()
    action = acted(client, "who", (*WRITER, *request_metadata("bazel", "7.4.0")))
    record = admin(client, "GetRecord", named("who", action))
    assert (record.action_hash, record.principal) == (action.hash, "token:writer")
    assert record.tool == "bazel 7.4.0"
    assert record.peer.startswith("ipv4:127.0.0.1:")
    assert before - 1 <= record.written_at.ToMilliseconds() / 1000 <= time.time() + 1
    with fails(grpc.StatusCode.NOT_FOUND, "in instance 'other'"):
        admin(client, "GetRecord", named("other", action))

    body = pb.ActionResult(exit_code=1).SerializeToString()
    over_http = fresh(9)
    put = ask(
        server.http, "PUT", f"/who/ac/{over_http.hash}", body, authorization=bearer(TOKENS["main"])
    )
    assert put.status == 403
    put = ask(
        server.http,
        "PUT",
        f"/who/ac/{over_http.hash}",
        body,
        authorization=bearer(TOKENS["admin"]),
    )
    assert put.status == 200
    record = admin(client, "GetRecord", named("who", over_http.digest))
    assert (record.principal, record.tool) == ("token:admin", "")
    assert record.peer.startswith("ipv4:127.0.0.1:")


def test_a_deleted_action_result_is_a_miss(client: Client) -> None:
    action = acted(client, "main")
    assert result(client, "main", action).exit_code == 3
    admin(client, "DeleteActionResult", named("main", action))
    with fails(grpc.StatusCode.NOT_FOUND):
        result(client, "main", action)
    with fails(grpc.StatusCode.NOT_FOUND):
        admin(client, "DeleteActionResult", named("main", action))


def test_a_deleted_blob_is_missing(client: Client) -> None:
    for size in (100, 50_000):
        blob = uploaded(client, size)
        admin(client, "DeleteBlob", admin_pb2.DeleteBlobRequest(digest=blob.digest))
        with fails(grpc.StatusCode.NOT_FOUND):
            client.read(blob.name, metadata=ADMIN)
        assert client.upload(blob.renamed(), metadata=WRITER) == size
        assert client.read(blob.name, metadata=ADMIN) == blob.data
    empty = admin_pb2.DeleteBlobRequest(digest=Blob(b"").digest)
    with fails(grpc.StatusCode.INVALID_ARGUMENT, "empty blob"):
        admin(client, "DeleteBlob", empty)


def test_a_list_has_pages_and_a_filter(client: Client) -> None:
    mine = [acted(client, "listed") for _ in range(5)]
    other = acted(client, "listed", ADMIN)

    def listed(**more: Any) -> list[str]:
        found: list[str] = []
        token = ""
        while True:
            request = admin_pb2.ListRecordsRequest(instance_name="listed", page_token=token, **more)
            page = admin(client, "ListRecords", request)
            assert len(page.records) <= more.get("page_size", 1000)
            found += [record.action_hash for record in page.records]
            token = page.next_page_token
            if not token:
                return found

    everything = sorted(action.hash for action in (*mine, other))
    for size in (1, 2, 6, 1000):
        assert listed(page_size=size) == everything
    assert listed(principal="token:ad*") == [other.hash]
    assert listed(principal="token:ad*", page_size=1) == [other.hash]
    assert listed(principal="token:w") == []
    for wrong in ("zz", "00", "00616263"):
        with fails(grpc.StatusCode.INVALID_ARGUMENT, "page"):
            admin(
                client,
                "ListRecords",
                admin_pb2.ListRecordsRequest(instance_name="listed", page_token=wrong),
            )


def test_a_dropped_instance_is_empty(client: Client, server: Server) -> None:
    action, kept = acted(client, "drop"), acted(client, "drop2")
    put = ask(server.http, "PUT", "/drop/cache/k", b"v", authorization=bearer(TOKENS["admin"]))
    assert put.status == 200
    answer = admin(client, "DropInstance", admin_pb2.DropInstanceRequest(instance_name="drop"))
    assert answer.entries == 2
    with fails(grpc.StatusCode.NOT_FOUND):
        result(client, "drop", action)
    get = ask(server.http, "GET", "/drop/cache/k", authorization=bearer(TOKENS["admin"]))
    assert get.status == 404
    assert result(client, "drop2", kept).exit_code == 3
    (event,) = [
        each for each in server.events("an instance was dropped") if each["instance"] == "drop"
    ]
    assert (event["principal"], event["entries"]) == ("token:admin", 2)


# --- cas admin

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command; its exit code, and what it printed."""

    def run(*words: str, token: str = "admin") -> tuple[int, str, str]:
        monkeypatch.setenv("CAS_REMOTE", f"grpc://{server.address}/cli")
        monkeypatch.setenv("CAS_REMOTE_TOKEN", TOKENS[token])
        capsys.readouterr()
        code = main(["admin", *words])
        return code, *capsys.readouterr()

    return run


def test_the_command(client: Client, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    action = acted(client, "cli", (*WRITER, *request_metadata("bazel", "7.4.0")))
    code, told, complained = run("who", action.hash, "--json")
    assert (code, complained) == (0, "")
    assert json.loads(told)["principal"] == "token:writer"
    _, listed, _ = run("list", "--principal", "token:writer")
    assert listed.split()[1:3] == [action.hash, "token:writer"]
    assert listed.endswith("bazel 7.4.0\n")
    assert run("delete-action", f"{action.hash}/{action.size_bytes}")[:2] == (0, "deleted\n")
    code, told, complained = run("who", action.hash)
    assert (code, told) == (3, "")
    assert "no action result" in complained

    blob = uploaded(client)
    assert run("delete-blob", f"{blob.hash}/{blob.size}")[0] == 0
    assert run("delete-blob", f"{blob.hash}/{blob.size}")[0] == 3
    acted(client, "cli")
    monkeypatch.setattr("sys.stdin", io.StringIO("yes\n"))
    code, _, complained = run("drop-instance")
    assert code == 2, "nobody is there to answer"
    assert "--yes" in complained
    assert run("drop-instance", "--yes")[:2] == (0, "1 entries deleted\n")
    code, _, complained = run("drop-instance", "--yes", token="writer")
    assert code == 1
    assert "token:writer may not administer" in complained
    assert TOKENS["writer"] not in complained


def test_the_command_needs_grpc(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["admin", "who", "0" * 64, "--remote", "http://127.0.0.1:1/x"]) == 1
    assert "expected grpc://" in capsys.readouterr().err
