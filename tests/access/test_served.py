"""Who may do what, over gRPC on both engines, against real servers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from cas.pb import asset_pb2 as ra
from cas.pb import remote_execution_pb2 as pb
from tests.access import issuing
from tests.access.serving import (
    DENIED,
    PASSWORD,
    ROLES,
    TOKENS,
    UNAUTHENTICATED,
    WRONG,
    ask,
    basic,
    bearer,
    replace,
    serving,
    written,
)
from tests.conformance.client import Blob, Client, fails, fresh, request_metadata
from tests.server.serving import PATIENCE, Server

Metadata = tuple[tuple[str, str | bytes], ...]


def sent(authorization: str | None) -> Metadata:
    return () if authorization is None else (("authorization", authorization),)


@pytest.fixture(scope="module", params=["cq", "aio"])
def engine(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def places(engine: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp(f"access-{engine}")


@pytest.fixture(scope="module")
def server(engine: str, places: Path) -> Iterator[Server]:
    with serving(places / "deny", "--engine", engine, *written(places / "files")) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Client]:
    with Client(server.address) as client:
        yield client


@pytest.fixture(scope="module")
def here(client: Client) -> Blob:
    """A blob that the server has."""
    blob = fresh(100)
    client.upload(blob, metadata=sent(bearer(TOKENS["writer"])))
    action = pb.UpdateActionResultRequest(
        instance_name="main", action_digest=blob.digest, action_result=pb.ActionResult(exit_code=3)
    )
    client.update_action_result(action, metadata=sent(bearer(TOKENS["writer"])))
    return blob


# --- gRPC

EMPTY = Blob(b"").digest

Call = Callable[[Client, Blob, Metadata], object]


def batch_update(client: Client, blob: Blob, metadata: Metadata) -> object:
    new = fresh(50)
    entry = pb.BatchUpdateBlobsRequest.Request(digest=new.digest, data=new.data)
    request = pb.BatchUpdateBlobsRequest(instance_name="main", requests=[entry])
    return client.batch_update_blobs(request, timeout=PATIENCE, metadata=metadata)


def asset(client: Client, method: str, request: Message, metadata: Metadata) -> object:
    path = f"/build.bazel.remote.asset.v1.{method}"
    made = client._method("unary_unary", path, ra.FetchBlobResponse)
    return made(request, timeout=PATIENCE, metadata=metadata)


READS: dict[str, Call] = {
    "FetchBlob": lambda client, blob, md: asset(
        client, "Fetch/FetchBlob", ra.FetchBlobRequest(instance_name="main", uris=["urn:x"]), md
    ),
    "FetchDirectory": lambda client, blob, md: asset(
        client,
        "Fetch/FetchDirectory",
        ra.FetchDirectoryRequest(instance_name="main", uris=["urn:x"]),
        md,
    ),
    "Read": lambda client, blob, md: client.read(f"main/{blob.name}", metadata=md),
    "QueryWriteStatus": lambda client, blob, md: client.query(f"main/{blob.upload}", md),
    "FindMissingBlobs": lambda client, blob, md: client.find_missing_blobs(
        pb.FindMissingBlobsRequest(instance_name="main", blob_digests=[blob.digest]), metadata=md
    ),
    "BatchReadBlobs": lambda client, blob, md: client.batch_read_blobs(
        pb.BatchReadBlobsRequest(instance_name="main", digests=[blob.digest]), metadata=md
    ),
    "SplitBlob": lambda client, blob, md: client.split_blob(
        pb.SplitBlobRequest(instance_name="main", blob_digest=blob.digest),
        timeout=PATIENCE,
        metadata=md,
    ),
    "GetActionResult": lambda client, blob, md: client.get_action_result(
        pb.GetActionResultRequest(instance_name="main", action_digest=blob.digest), metadata=md
    ),
    "GetCapabilities": lambda client, blob, md: client.get_capabilities(
        pb.GetCapabilitiesRequest(instance_name="main"), metadata=md
    ),
    "GetTree": lambda client, blob, md: list(
        client.get_tree(pb.GetTreeRequest(instance_name="main", root_digest=EMPTY), metadata=md)
    ),
}
WRITES: dict[str, Call] = {
    "SpliceBlob": lambda client, blob, md: client.splice_blob(
        pb.SpliceBlobRequest(
            instance_name="main", blob_digest=blob.digest, chunk_digests=[blob.digest]
        ),
        timeout=PATIENCE,
        metadata=md,
    ),
    "PushBlob": lambda client, blob, md: asset(
        client,
        "Push/PushBlob",
        ra.PushBlobRequest(instance_name="main", uris=["urn:x"], blob_digest=blob.digest),
        md,
    ),
    "PushDirectory": lambda client, blob, md: asset(
        client,
        "Push/PushDirectory",
        ra.PushDirectoryRequest(instance_name="main", uris=["urn:x"], root_directory_digest=EMPTY),
        md,
    ),
    "Write": lambda client, blob, md: client.upload(
        new := fresh(200_000), name=f"main/{new.upload}", metadata=md
    ),
    "Write, one message": lambda client, blob, md: client.upload(
        new := fresh(20), name=f"main/{new.upload}", metadata=md
    ),
    "BatchUpdateBlobs": batch_update,
    "UpdateActionResult": lambda client, blob, md: client.update_action_result(
        pb.UpdateActionResultRequest(
            instance_name="main",
            action_digest=fresh(9).digest,
            action_result=pb.ActionResult(exit_code=1),
        ),
        metadata=md,
    ),
}


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("method", [*READS, *WRITES])
def test_each_method_takes_its_role(client: Client, here: Blob, method: str, role: str) -> None:
    authorization, reading, writing = ROLES[role]
    expected = reading if method in READS else writing
    call = {**READS, **WRITES}[method]
    if expected is None:
        call(client, here, sent(authorization))
    else:
        with fails(expected):
            call(client, here, sent(authorization))


def test_an_instance_is_its_own(client: Client, here: Blob) -> None:
    mine = sent(bearer(TOKENS["main"]))
    client.read(f"main/{here.name}", metadata=mine)
    for other in ("", "main/", "main/sub/", "mai/", "main2/"):
        if other != "main/":
            with fails(DENIED, "token:main may not read in instance"):
                client.read(f"{other}{here.name}", metadata=mine)


@pytest.mark.parametrize(
    ("authorization", "updates"),
    [(TOKENS["reader"], False), (TOKENS["writer"], True), (TOKENS["main"], True)],
)
def test_capabilities_tell_each_caller_the_truth(
    client: Client, authorization: str, updates: bool
) -> None:
    request = pb.GetCapabilitiesRequest(instance_name="main")
    answer = client.get_capabilities(request, metadata=sent(bearer(authorization)))
    told = answer.cache_capabilities.action_cache_update_capabilities.update_enabled
    assert told is updates


def test_health_is_open_and_reflection_is_not(client: Client) -> None:
    check = client.channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    assert check(health_pb2.HealthCheckRequest(), timeout=PATIENCE).status == 1
    reflect = client.channel.stream_stream(
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    asked = [reflection_pb2.ServerReflectionRequest(list_services="")]
    with fails(UNAUTHENTICATED):
        list(reflect(iter(asked), timeout=PATIENCE))
    with fails(DENIED):
        list(reflect(iter(asked), timeout=PATIENCE, metadata=sent(bearer(TOKENS["none"]))))
    for reader in ("reader", "main"):
        (answer,) = reflect(iter(asked), timeout=PATIENCE, metadata=sent(bearer(TOKENS[reader])))
        assert len(answer.list_services_response.service) >= 5


def capabilities(client: Client, *metadata: tuple[str, str | bytes]) -> bool:
    """Whether the caller may write, where he may read."""
    request = pb.GetCapabilitiesRequest(instance_name="main")
    answer = client.get_capabilities(request, timeout=PATIENCE, metadata=metadata)
    told: bool = answer.cache_capabilities.action_cache_update_capabilities.update_enabled
    return told


def test_passwords_and_jwts(client: Client) -> None:
    def may_write(authorization: str) -> bool:
        return capabilities(client, ("authorization", authorization))

    assert not may_write(basic("alice", PASSWORD))
    assert may_write(bearer(issuing.token(branch="main")))
    assert may_write(bearer(issuing.token(cas_role="write", cas_instance="main")))
    assert not may_write(bearer(issuing.token(cas_role="read", cas_instance="main")))
    for denied in (
        basic("bob", PASSWORD),
        bearer(issuing.token(branch="other")),
        bearer(issuing.token(cas_role="write", cas_instance="other")),
    ):
        with fails(DENIED):
            may_write(denied)


@pytest.mark.parametrize("what", WRONG)
def test_wrong_credentials(client: Client, what: str) -> None:
    authorization = WRONG[what]
    with pytest.raises(grpc.RpcError) as caught:
        capabilities(client, ("authorization", authorization))
    error: Any = caught.value
    assert error.code() is UNAUTHENTICATED
    secret = authorization.split()[-1:] or [""]
    assert len(secret[0]) < 8 or secret[0] not in (error.details() or "")


def test_two_headers_are_refused(client: Client) -> None:
    right = bearer(TOKENS["admin"])
    with fails(UNAUTHENTICATED, "several"):
        capabilities(client, ("authorization", right), ("authorization", right))


@pytest.mark.parametrize(
    "metadata",
    [
        (("authorization", bearer("x" * 100_000)),),
        tuple((f"x-{number}", "y" * 100) for number in range(2_000)),
        tuple(("authorization", bearer("x" * 20)) for _ in range(200)),
    ],
    ids=["long", "many", "many of ours"],
)
def test_huge_metadata_is_refused(client: Client, metadata: Metadata) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        capabilities(client, *metadata)
    error: Any = caught.value
    assert error.code() in (
        UNAUTHENTICATED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
    )
    assert capabilities(client, *sent(bearer(TOKENS["admin"])))


def test_a_flood_of_wrong_passwords_leaves_others_alone(client: Client, here: Blob) -> None:
    request = pb.GetCapabilitiesRequest(instance_name="main")
    flood = [
        client.get_capabilities.future(
            request, timeout=PATIENCE, metadata=sent(basic("alice", f"wrong-{number}"))
        )
        for number in range(300)
    ]
    assert client.read(f"main/{here.name}", metadata=sent(bearer(TOKENS["reader"]))) == here.data
    codes = {call.code() for call in flood}
    assert codes <= {UNAUTHENTICATED, grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert UNAUTHENTICATED in codes


def test_who_wrote_an_action_result_is_kept(client: Client, server: Server) -> None:
    # Read back by test_admin; here: that a tool with an odd name does no harm.
    request = pb.UpdateActionResultRequest(
        instance_name="main", action_digest=fresh(9).digest, action_result=pb.ActionResult()
    )
    metadata = (*sent(bearer(TOKENS["writer"])), *request_metadata("b\na\tz el", "7\x00"))
    client.update_action_result(request, metadata=metadata)


# --- discard


@pytest.fixture(scope="module")
def dropping(engine: str, places: Path) -> Iterator[Server]:
    arguments = ["--engine", engine, "--denied-writes", "discard", *written(places / "files")]
    with serving(places / "discard", *arguments) as server:
        yield server


def test_what_a_reader_writes_is_dropped(dropping: Server) -> None:
    reader, writer = (sent(bearer(TOKENS[name])) for name in ("reader", "writer"))
    with Client(dropping.address) as client:
        assert capabilities(client, *reader), "old Bazels do not build where they are told no"
        for size in (20, 3_000_000):
            blob = fresh(size)
            # Bazel 5.0.0 sends all of it, whatever it is answered.
            for metadata in (reader, (*reader, *request_metadata("bazel", "5.0.0"))):
                assert client.upload(blob, step=65_536, metadata=metadata) == size
            with fails(grpc.StatusCode.NOT_FOUND):
                client.read(blob.name, metadata=reader)
            assert client.upload(blob, metadata=writer) == size
            assert client.read(blob.name, metadata=reader) == blob.data
        blob = fresh(40)
        entry = pb.BatchUpdateBlobsRequest.Request(digest=blob.digest, data=blob.data)
        batch = pb.BatchUpdateBlobsRequest(requests=[entry])
        (answer,) = client.batch_update_blobs(batch, metadata=reader).responses
        assert (answer.digest, answer.status.code) == (blob.digest, 0)
        result = pb.ActionResult(exit_code=7)
        update = pb.UpdateActionResultRequest(action_digest=blob.digest, action_result=result)
        assert client.update_action_result(update, metadata=reader) == result
        with fails(grpc.StatusCode.NOT_FOUND):
            client.read(blob.name, metadata=reader)
        with fails(grpc.StatusCode.NOT_FOUND):
            client.get_action_result(
                pb.GetActionResultRequest(action_digest=blob.digest), metadata=reader
            )
        for refused, code in ((None, UNAUTHENTICATED), (bearer(TOKENS["none"]), DENIED)):
            with fails(code):
                client.upload(fresh(20), metadata=sent(refused))


# --- while it runs


def test_files_are_read_again_and_the_log_tells_no_secret(tmp_path: Path, engine: str) -> None:
    arguments = written(tmp_path / "files")
    tokens = tmp_path / "files" / "tokens"
    with serving(tmp_path / "server", "--engine", engine, *arguments) as server:
        with Client(server.address) as client:
            assert capabilities(client, *sent(bearer(TOKENS["writer"])))
            replace(tokens, b"broken line with a secret-secret-secret\n")
            poll(
                lambda: bool(
                    server.events(
                        "a file cannot be read again; what was read before stays in force"
                    )
                )
            )
            assert capabilities(client, *sent(bearer(TOKENS["writer"])))
            replace(tokens, b"writer another-token-of-the-writer\n")
            poll(lambda: refused(client, TOKENS["writer"]))
            assert capabilities(client, *sent(bearer("another-token-of-the-writer")))
            poll(
                lambda: (
                    ask(
                        server.http, "GET", "/status", authorization=bearer(TOKENS["writer"])
                    ).status
                    == 401
                )
            )
        text = server.log.read_text()
        assert "secret-secret" not in text
        assert "another-token" not in text


def refused(client: Client, token: str) -> bool:
    try:
        capabilities(client, *sent(bearer(token)))
    except grpc.RpcError as error:
        return error.code() is UNAUTHENTICATED
    return False


def poll(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


# --- nobody


def test_other_machines_get_nothing_unless_somebody_says_so(tmp_path: Path) -> None:
    with serving(tmp_path / "closed", "--grpc", "0.0.0.0:0") as server:
        (event,) = [
            json.loads(line)
            for line in server.log.read_text().splitlines()
            if "every call is refused" in line
        ]
        assert event["level"] == "warning"
        with Client(server.address) as client, fails(UNAUTHENTICATED, "htpasswd, tokens"):
            capabilities(client)
        assert ask(server.http, "GET", "/metrics").status == 200, (
            "this address is the machine's own"
        )
    with serving(tmp_path / "said", "--grpc", "0.0.0.0:0", "--anonymous", "read") as server:
        assert "every call is refused" not in server.log.read_text()
        with Client(server.address) as client:
            assert not capabilities(client)
            with fails(UNAUTHENTICATED):
                client.upload(fresh(20))


def test_a_start_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("ci secret-secret-secret\nci x\n")
    with (
        pytest.raises(AssertionError, match="before it was ready") as caught,
        serving(tmp_path / "server", "--tokens", str(tmp_path / "tokens")),
    ):
        pass
    assert "tokens: line 2: expected a token of at least 16" in str(caught.value)
    assert "secret-secret" not in str(caught.value)
