"""Blobs and action results of other digest functions than SHA-256."""

from __future__ import annotations

import hashlib

import pytest
from blake3 import blake3

from cas.pb import remote_execution_pb2 as pb
from tests.http.serving import Served, some_bytes


def result(data: bytes) -> bytes:
    """An action result that needs `data` by its BLAKE3."""
    digest = pb.Digest(hash=blake3(data).hexdigest(), size_bytes=len(data))
    return pb.ActionResult(stdout_digest=digest, stderr_raw=data[:9]).SerializeToString()


@pytest.mark.parametrize("size", [0, 9, 100_000, 2_000_000])
def test_a_blob_comes_back(served: Served, size: int) -> None:
    data = some_bytes(size, 40)
    path = f"/blake3/cas/{blake3(data).hexdigest()}"
    assert served.get(path).status == (404 if size else 200)
    assert served.put(path, data).status == 200
    got = served.get(f"/any/instance{path}")
    assert (got.status, got.body) == (200, data)
    assert got.headers["etag"] == f'"{blake3(data).hexdigest()}"'
    assert served.get(path.removeprefix("/blake3")).status == 404


@pytest.mark.parametrize("size", [9, 100_000, 2_000_000])
def test_other_bytes_than_the_path_says_are_refused(served: Served, size: int) -> None:
    data = some_bytes(size, 41)
    for body in (data, iter([data])):
        path = f"/blake3/cas/{hashlib.sha256(data).hexdigest()}"
        assert served.ask("PUT", path, body).status == 400
        assert served.get(path).status == 404


def test_an_action_result_and_what_it_names_are_of_one_function(served: Served) -> None:
    data = some_bytes(30, 42)
    action = f"ac/{blake3(b'action').hexdigest()}"
    assert served.put(f"/blake3/{action}", result(data)).status == 200
    # What it names is there by its SHA-256 only.
    assert served.put(f"/cas/{hashlib.sha256(data).hexdigest()}", data).status == 200
    assert served.get(f"/blake3/{action}").status == 404
    assert served.put(f"/blake3/cas/{blake3(data).hexdigest()}", data).status == 200
    assert served.get(f"/blake3/{action}").body == result(data)
    assert served.get(f"/{action}").status == 404


def test_what_is_no_action_result_has_a_place_for_each_function(served: Served) -> None:
    action = f"ac/{blake3(b'entry').hexdigest()}"
    assert served.put(f"/blake3/{action}", b"\xff no message").status == 200
    assert served.get(f"/{action}").status == 404
    assert served.get(f"/blake3/{action}").body == b"\xff no message"


def test_a_function_that_is_not_enabled(served: Served) -> None:
    data = some_bytes(30, 43)
    refused = served.put(f"/cas/{hashlib.sha1(data).hexdigest()}", data)
    assert refused.status == 400
    assert b"40 characters; expected 64 (sha256), 64 (blake3, named)" in refused.body
