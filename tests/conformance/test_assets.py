"""Remote Asset API: Fetch and Push, over a real connection.

Each test's docstring says which sentence of remote_asset.proto's comments it holds the server to.
"""

from __future__ import annotations

import base64
import hashlib
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import pytest
from blake3 import blake3
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from cas.pb import admin_pb2
from cas.pb import asset_pb2 as ra
from cas.pb import remote_execution_pb2 as pb
from tests.conformance.client import Blob, Client, fails, fresh, message
from tests.conformance.conftest import Start
from tests.conformance.serving import PATIENCE, Server

INVALID = grpc.StatusCode.INVALID_ARGUMENT
OK, NOT_FOUND = 0, grpc.StatusCode.NOT_FOUND.value[0]

RESPONSES: dict[str, type[Message]] = {
    "Fetch/FetchBlob": ra.FetchBlobResponse,
    "Fetch/FetchDirectory": ra.FetchDirectoryResponse,
    "Push/PushBlob": ra.PushBlobResponse,
    "Push/PushDirectory": ra.PushDirectoryResponse,
}


def call(client: Client, method: str, request: Message) -> Any:
    made = client._method(
        "unary_unary", f"/build.bazel.remote.asset.v1.{method}", RESPONSES[method]
    )
    return made(request, timeout=PATIENCE)


def some_uri() -> str:
    return f"urn:uuid:{uuid.uuid4()}"


def qualified(**qualifiers: str) -> list[ra.Qualifier]:
    return [ra.Qualifier(name=name, value=value) for name, value in qualifiers.items()]


def stamp(seconds: float) -> Timestamp:
    return Timestamp(seconds=int(seconds), nanos=int(seconds % 1 * 1e9))


def push(client: Client, blob: Blob, *uris: str, **more: Any) -> None:
    call(client, "Push/PushBlob", ra.PushBlobRequest(uris=uris, blob_digest=blob.digest, **more))


def fetch(client: Client, *uris: str, **more: Any) -> Any:
    return call(client, "Fetch/FetchBlob", ra.FetchBlobRequest(uris=uris, **more))


def push_directory(client: Client, root: Blob, *uris: str, **more: Any) -> None:
    request = ra.PushDirectoryRequest(uris=uris, root_directory_digest=root.digest, **more)
    call(client, "Push/PushDirectory", request)


def fetch_directory(client: Client, *uris: str, **more: Any) -> Any:
    return call(client, "Fetch/FetchDirectory", ra.FetchDirectoryRequest(uris=uris, **more))


def here(client: Client, size: int = 50) -> Blob:
    """A blob that the server has."""
    blob = fresh(size)
    client.put(blob)
    return blob


def delete(client: Client, blob: Blob) -> None:
    """As eviction would."""
    method = client._method(
        "unary_unary", "/cas.admin.v1.Admin/DeleteBlob", admin_pb2.DeleteResponse
    )
    method(admin_pb2.DeleteBlobRequest(digest=blob.digest), timeout=PATIENCE)


def tree(client: Client, *, without: int = 0) -> list[Blob]:
    """A root Directory, a Directory in it, a file in that one; the last ones are not uploaded."""
    file = fresh(20)
    below = message(pb.Directory(files=[pb.FileNode(name="file", digest=file.digest)]))
    node = pb.DirectoryNode(name="below", digest=below.digest)
    blobs = [message(pb.Directory(directories=[node])), below, file]
    client.put(*blobs[: len(blobs) - without])
    return blobs


def test_what_was_pushed_is_fetched_by_any_of_its_uris(client: Client) -> None:
    """PushBlobRequest.uris: available to fetch by specifying any of them."""
    blob, uris = here(client), [some_uri() for _ in range(3)]
    push(client, blob, *uris)
    for uri in uris:
        found = fetch(client, some_uri(), uri)
        assert (found.status.code, found.uri) == (OK, uri)
        assert found.blob_digest == blob.digest
        assert found.digest_function == pb.DigestFunction.SHA256


def test_what_was_not_pushed_is_not_found(client: Client) -> None:
    """Push: a minimal Fetch returns NOT_FOUND for what was not pushed; FetchBlobResponse.status."""
    uri = some_uri()
    found = fetch(client, uri)
    assert (found.status.code, found.uri) == (NOT_FOUND, uri)
    assert uri in found.status.message
    assert not found.HasField("blob_digest")


def test_a_later_push_takes_its_place(client: Client) -> None:
    """Push: associates a URI with content."""
    uri = some_uri()
    for blob in (here(client), here(client)):
        push(client, blob, uri)
        assert fetch(client, uri).blob_digest == blob.digest


def test_qualifiers_in_any_order(client: Client) -> None:
    """Qualifier: may be supplied in any order; servers may require an exact match of all."""
    blob, uri = here(client), some_uri()
    push(client, blob, uri, qualifiers=qualified(commit="1", directory="a"))
    found = fetch(client, uri, qualifiers=qualified(directory="a", commit="1"))
    assert found.blob_digest == blob.digest
    assert {q.name: q.value for q in found.qualifiers} == {"commit": "1", "directory": "a"}
    for other in ({}, {"commit": "1"}, {"commit": "2", "directory": "a"}):
        assert fetch(client, uri, qualifiers=qualified(**other)).status.code == NOT_FOUND


def test_blobs_and_directories_are_apart(client: Client) -> None:
    """FetchDirectory: the content is a directory."""
    uri, root = some_uri(), tree(client)[0]
    push_directory(client, root, uri)
    assert fetch_directory(client, uri).root_directory_digest == root.digest
    assert fetch(client, uri).status.code == NOT_FOUND


def test_instances_are_apart(client: Client) -> None:
    """FetchBlobRequest.instance_name."""
    blob, uri = here(client), some_uri()
    push(client, blob, uri, instance_name="one/two")
    assert fetch(client, uri, instance_name="one/two").blob_digest == blob.digest
    for other in ("", "one", "two"):
        assert fetch(client, uri, instance_name=other).status.code == NOT_FOUND
    with fails(INVALID, "instance name"):
        fetch(client, uri, instance_name="blobs")


def test_what_has_expired_is_not_returned(client: Client) -> None:
    """PushBlobRequest.expire_at: a time after which this content should stop being returned; a
    later push alters it."""
    blob, uri = here(client), some_uri()
    push(client, blob, uri, expire_at=stamp(time.time() + 3600))
    assert fetch(client, uri).status.code == OK
    push(client, blob, uri, expire_at=stamp(time.time() - 1))
    assert fetch(client, uri).status.code == NOT_FOUND
    push(client, blob, uri)
    assert fetch(client, uri).status.code == OK


def test_what_is_too_old_is_not_returned(client: Client) -> None:
    """FetchBlobRequest.oldest_content_accepted: as measured from the time it was pushed."""
    blob, uri = here(client), some_uri()
    push(client, blob, uri)
    now = time.time()
    assert fetch(client, uri, oldest_content_accepted=stamp(now - 3600)).status.code == OK
    assert fetch(client, uri, oldest_content_accepted=stamp(now + 3600)).status.code == NOT_FOUND


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_directory_is_found_only_while_all_of_it_is_here(client: Client, lost: int) -> None:
    """Fetch: servers should ensure that referenced files are present at the time of response."""
    uri, blobs = some_uri(), tree(client)
    push_directory(client, blobs[0], uri)
    delete(client, blobs[lost])
    assert fetch_directory(client, uri).status.code == NOT_FOUND


@pytest.mark.parametrize("lost", ["content", "blob", "below the directory"])
def test_what_a_blob_references_is_needed_too(client: Client, lost: str) -> None:
    """PushBlobRequest.references_blobs, references_directories: need to not expire before."""
    uri, blob, other, blobs = some_uri(), here(client), here(client), tree(client)
    push(
        client,
        blob,
        uri,
        references_blobs=[other.digest],
        references_directories=[blobs[0].digest],
    )
    assert fetch(client, uri).status.code == OK
    delete(client, {"content": blob, "blob": other, "below the directory": blobs[2]}[lost])
    assert fetch(client, uri).status.code == NOT_FOUND


@pytest.mark.parametrize("without", [1, 2, 3])
def test_content_has_to_be_there_before(client: Client, without: int) -> None:
    """Push: clients must ensure associated content is available in CAS prior to pushing."""
    uri, blobs = some_uri(), tree(client, without=without)
    with fails(grpc.StatusCode.FAILED_PRECONDITION, blobs[3 - without].hash):
        push_directory(client, blobs[0], uri)
    assert fetch_directory(client, uri).status.code == NOT_FOUND


def test_what_is_no_directory_is_refused(client: Client) -> None:
    """PushDirectoryRequest.root_directory_digest: directory to associate."""
    blob = Blob(b"\xff" * 20)
    client.put(blob)
    with fails(INVALID, blob.hash, "Directory"):
        push_directory(client, blob, some_uri())


def test_digest_functions(client: Client) -> None:
    """FetchBlobRequest.digest_function: must be used to compute the digest; SHA256 if unset."""
    data, uri = fresh(60).data, some_uri()
    digest = pb.Digest(hash=blake3(data).hexdigest(), size_bytes=len(data))
    number = pb.DigestFunction.BLAKE3
    update = pb.BatchUpdateBlobsRequest(
        digest_function=number,
        requests=[pb.BatchUpdateBlobsRequest.Request(digest=digest, data=data)],
    )
    client.batch_update_blobs(update, timeout=PATIENCE)
    request = ra.PushBlobRequest(uris=[uri], blob_digest=digest, digest_function=number)
    call(client, "Push/PushBlob", request)
    found = fetch(client, uri, digest_function=number)
    assert (found.blob_digest, found.digest_function) == (digest, number)
    assert fetch(client, uri).status.code == NOT_FOUND
    client.put(Blob(data))
    push(client, Blob(data), uri)
    assert fetch(client, uri).blob_digest.hash == hashlib.sha256(data).hexdigest()
    with fails(INVALID, "2 (sha1)", "9 (blake3)"):
        fetch(client, uri, digest_function=pb.DigestFunction.SHA1)


def many(count: int) -> Iterable[ra.Qualifier]:
    return [ra.Qualifier(name=str(number)) for number in range(count)]


@pytest.mark.parametrize(
    ("request_", "mentioned"),
    [
        ({"uris": []}, "0 URIs"),
        ({"uris": ["urn:x"] * 65}, "65 URIs"),
        ({"uris": [""]}, "0 bytes"),
        ({"uris": ["x" * 9000]}, "9000 bytes"),
        ({"uris": ["urn:x"], "qualifiers": [*many(1), *many(1)]}, "twice"),
        ({"uris": ["urn:x"], "qualifiers": [ra.Qualifier(value="1")]}, "empty"),
        ({"uris": ["urn:x"], "qualifiers": many(65)}, "65 qualifiers"),
        ({"uris": ["urn:x"], "qualifiers": [ra.Qualifier(name="x", value="y" * 9000)]}, "longer"),
    ],
    ids=["no URI", "many", "empty", "long", "twice", "no name", "many names", "long value"],
)
def test_malformed_requests(client: Client, request_: dict[str, Any], mentioned: str) -> None:
    """FetchBlobRequest.uris: at least one; qualifiers: names must be unique."""
    blob = here(client)
    with fails(INVALID, mentioned):
        call(client, "Fetch/FetchBlob", ra.FetchBlobRequest(**request_))
    with fails(INVALID, mentioned):
        push(client, blob, *request_["uris"], qualifiers=request_.get("qualifiers", []))


def test_strange_but_different_names_are_different(client: Client) -> None:
    """Qualifier: no separation is made between standard and nonstandard ones."""
    pairs = [("a=b", "c"), ("a", "b=c"), ("a\n", "b"), ('a"', ', "b'), ("a\0", "b"), ("ä", "")]
    uri, blobs = some_uri(), {}
    for name, value in pairs:
        blobs[name, value] = here(client)
        qualifiers = [ra.Qualifier(name=name, value=value)]
        push(client, blobs[name, value], uri, qualifiers=qualifiers)
    for name, value in pairs:
        found = fetch(client, uri, qualifiers=[ra.Qualifier(name=name, value=value)])
        assert found.blob_digest == blobs[name, value].digest


@pytest.fixture
def origin() -> Iterator[tuple[str, dict[str, bytes]]]:
    """A web server's URL, and what it has."""
    held: dict[str, bytes] = {}

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            data = held.get(self.path)
            self.send_response(404 if data is None else 200)
            self.end_headers()
            self.wfile.write(data or b"")

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", held
    server.shutdown()
    server.server_close()
    thread.join()


def fetching(start: Start, url: str, *more: str) -> Server:
    """A server that fetches from there."""
    return start("--fetch-hosts", url.removeprefix("http://"), "--fetch-private", *more)


def sri(data: bytes) -> list[ra.Qualifier]:
    encoded = base64.b64encode(hashlib.sha256(data).digest()).decode()
    return [ra.Qualifier(name="checksum.sri", value=f"sha256-{encoded}")]


def test_what_is_at_its_origin_is_fetched_once(
    start: Start, origin: tuple[str, dict[str, bytes]]
) -> None:
    """Fetch: servers may fetch content that they do not have, may cache it and reuse it, subject to
    oldest_content_accepted; what is fetched is in the CAS, and matches all qualifiers."""
    url, held = origin
    old, new = fresh(200_000), fresh(300)
    held["/a"] = old.data
    with Client(fetching(start, url).address) as client:
        found = fetch(client, "urn:x", f"{url}/none", f"{url}/a")
        assert (found.status.code, found.uri) == (OK, f"{url}/a")
        assert found.blob_digest == old.digest
        assert client.read(old.name) == old.data
        held["/a"] = new.data
        assert fetch(client, f"{url}/a").blob_digest == old.digest
        assert fetch(client, f"{url}/a", qualifiers=sri(new.data)).blob_digest == new.digest
        now = time.time()
        later = fetch(client, f"{url}/a", oldest_content_accepted=stamp(now))
        assert later.blob_digest == new.digest
        assert fetch(client, f"{url}/a").blob_digest == new.digest
        # What was pushed counts before what could be fetched.
        client.put(pushed := fresh(40))
        push(client, pushed, f"{url}/b")
        assert fetch(client, f"{url}/b").blob_digest == pushed.digest


def test_what_stands_in_the_way_is_told_inline(
    start: Start, origin: tuple[str, dict[str, bytes]]
) -> None:
    """FetchBlobResponse.status: NOT_FOUND, PERMISSION_DENIED, ABORTED, RESOURCE_EXHAUSTED."""
    url, held = origin
    held["/a"], held["/large"] = b"content", bytes(20_000)
    aborted, denied, exhausted = (
        grpc.StatusCode[name].value[0]
        for name in ("ABORTED", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED")
    )
    with Client(fetching(start, url, "--fetch-max-size", "10000").address) as client:
        assert fetch(client, f"{url}/none").status.code == NOT_FOUND
        assert fetch(client, f"{url}/a", qualifiers=sri(b"other")).status.code == aborted
        assert client.missing(Blob(b"content"))
        assert fetch(client, "http://example.org/a").status.code == denied
        found = fetch(client, f"{url}/large")
        assert (found.status.code, found.uri) == (exhausted, f"{url}/large")
        # No directory is made of what is fetched.
        assert fetch_directory(client, f"{url}/a").status.code == NOT_FOUND
        with fails(INVALID, "'branch' not supported"):
            fetch(client, f"{url}/a", qualifiers=qualified(branch="main"))
        with fails(INVALID, "checksum"):
            fetch(client, f"{url}/a", qualifiers=[ra.Qualifier(name="checksum.sri", value="x")])
        with fails(INVALID, "timeout"):
            fetch(client, f"{url}/a", timeout=Duration(seconds=-1))


def test_nothing_is_fetched_for_who_may_not_write(
    start: Start, origin: tuple[str, dict[str, bytes]]
) -> None:
    """Design §1: roles; a fetch writes."""
    url, held = origin
    held["/a"] = b"content"
    with Client(fetching(start, url, "--anonymous", "read").address) as client:
        assert fetch(client, f"{url}/a").status.code == NOT_FOUND
        assert client.missing(Blob(b"content"))


def test_nothing_is_fetched_unless_hosts_are_allowed(
    client: Client, origin: tuple[str, dict[str, bytes]]
) -> None:
    """Push: a minimal Fetch returns NOT_FOUND for what was not pushed."""
    url, held = origin
    held["/a"] = b"content"
    assert fetch(client, f"{url}/a").status.code == NOT_FOUND


def test_it_outlives_the_server(start: Start) -> None:
    """Push: to be returned in future Fetch calls."""
    uri = some_uri()
    first = start()
    with Client(first.address) as client:
        blobs = tree(client)
        push_directory(client, blobs[0], uri, instance_name="main")
    first.kill()
    with Client(start(directory=first.directory).address) as client:
        found = fetch_directory(client, uri, instance_name="main")
        assert found.root_directory_digest == blobs[0].digest


def test_it_goes_with_its_instance(client: Client) -> None:
    """Administration: an instance's values go with it."""
    blob, uri, instance = here(client), some_uri(), f"i{uuid.uuid4()}"
    push(client, blob, uri, instance_name=instance)
    method = client._method(
        "unary_unary", "/cas.admin.v1.Admin/DropInstance", admin_pb2.DropInstanceResponse
    )
    answer = method(admin_pb2.DropInstanceRequest(instance_name=instance), timeout=PATIENCE)
    assert answer.entries == 1
    assert fetch(client, uri, instance_name=instance).status.code == NOT_FOUND
