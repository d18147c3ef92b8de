"""GetTree, over a real connection.

Each test's docstring says which sentence of REAPI's comments on GetTree, GetTreeRequest and
GetTreeResponse it holds the server to.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping

import grpc
import pytest

from cas.pb import remote_execution_pb2 as pb
from tests.conformance.client import Blob, Client, fails, fresh, message
from tests.conformance.serving import PATIENCE

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND


def directory(children: Mapping[str, Blob] | None = None, filler: int = 0) -> Blob:
    """A Directory message that no other test makes, with these directories in it."""
    files = [pb.FileNode(name=str(uuid.uuid4()), digest=Blob(b"").digest)]
    files += [pb.FileNode(name=f"{i:06}{'x' * 1000}") for i in range(filler)]
    return message(
        pb.Directory(
            files=files,
            directories=[
                pb.DirectoryNode(name=name, digest=child.digest)
                for name, child in sorted((children or {}).items())
            ],
        )
    )


def tree(
    client: Client, root: pb.Digest, page_size: int = 0, token: str = ""
) -> list[pb.GetTreeResponse]:
    request = pb.GetTreeRequest(
        instance_name="main", root_digest=root, page_size=page_size, page_token=token
    )
    return list(client.get_tree(request, timeout=PATIENCE))


def hashes(responses: list[pb.GetTreeResponse]) -> list[str]:
    """Of all directories, in order."""
    return [message(each).hash for response in responses for each in response.directories]


def deep(client: Client) -> tuple[Blob, set[str]]:
    """A tree of 1 + 5 + 25 directories; its root and all of their hashes."""
    leaves = [directory() for _ in range(25)]
    middle = [directory({str(j): leaves[5 * i + j] for j in range(5)}) for i in range(5)]
    root = directory({str(i): child for i, child in enumerate(middle)})
    client.put(*leaves, *middle, root)
    return root, {blob.hash for blob in (*leaves, *middle, root)}


def test_every_node_descended_from_the_root(client: Client) -> None:
    """The server enumerates the directory recursively and returns every node descended from
    the root.  An empty next_page_token signifies the last page."""
    root, expected = deep(client)
    responses = tree(client, root.digest)
    found = hashes(responses)
    assert set(found) == expected
    assert len(found) == len(expected)
    assert root.hash in found
    assert responses[-1].next_page_token == ""


def test_a_single_directory(client: Client) -> None:
    """A root without children is all there is."""
    root = directory()
    client.put(root)
    assert hashes(tree(client, root.digest)) == [root.hash]


def test_the_empty_directory(client: Client) -> None:
    """The empty blob is the Directory without entries, and always there."""
    responses = tree(client, Blob(b"").digest)
    assert [list(response.directories) for response in responses] == [[pb.Directory()]]


@pytest.mark.parametrize("page_size", [1, 2, 7, 30, 31, 32, 1000, 2**31 - 1])
def test_pages_have_no_more_than_was_asked_for(client: Client, page_size: int) -> None:
    """page_size: if present, the server will return no more than this many items."""
    root, expected = deep(client)
    responses = tree(client, root.digest, page_size)
    assert all(0 < len(response.directories) <= page_size for response in responses)
    assert sorted(hashes(responses)) == sorted(expected)
    tokens = [response.next_page_token for response in responses]
    assert all(tokens[:-1])
    assert not tokens[-1]


@pytest.mark.parametrize("page_size", [1, 4, 10])
def test_a_token_skips_ahead(client: Client, page_size: int) -> None:
    """page_token can be used to skip ahead, e.g. when retrying a partially completed request:
    the server returns only that page and the ones that succeed it."""
    root, _ = deep(client)
    whole = tree(client, root.digest, page_size)
    for place, response in enumerate(whole[:-1]):
        rest = tree(client, root.digest, page_size, response.next_page_token)
        assert hashes(rest) == hashes(whole[place + 1 :])


@pytest.mark.parametrize("token", ["x", "-1", "1.5", "٣", " 1", "9" * 40, "\0", "a" * 10_000])
def test_a_token_that_no_response_gave_is_refused(client: Client, token: str) -> None:
    """page_token: must be a value received in a previous response."""
    root, _ = deep(client)
    with fails(INVALID, "page_token", repr(token)[1:5]):
        tree(client, root.digest, 2, token)


def test_a_negative_page_size_is_refused(client: Client) -> None:
    """page_size: a maximum."""
    root, _ = deep(client)
    with fails(INVALID, "page_size", "-1"):
        tree(client, root.digest, -1)


def test_missing_parts_are_omitted(client: Client) -> None:
    """If part of the tree is missing, the server returns the portion present and omits the
    rest."""
    leaf, absent_leaf = directory(), directory()
    below_absent = directory()
    absent = directory({"x": below_absent})
    middle = directory({"a": leaf, "b": absent_leaf})
    root = directory({"a": middle, "b": absent, "c": leaf})
    client.put(leaf, below_absent, middle, root)
    responses = tree(client, root.digest)
    assert sorted(hashes(responses)) == sorted([root.hash, middle.hash, leaf.hash])
    assert responses[-1].next_page_token == ""


def test_a_missing_root_is_not_found(client: Client) -> None:
    """NOT_FOUND: the requested tree root is not present."""
    root = directory()
    with fails(NOT_FOUND, root.hash):
        tree(client, root.digest)


def test_a_root_of_another_size_is_not_found(client: Client) -> None:
    """Digest: the size is an integral part of it."""
    root = directory()
    client.put(root)
    with fails(NOT_FOUND, root.hash):
        tree(client, pb.Digest(hash=root.hash, size_bytes=root.size + 1))


def test_a_shared_directory_is_there_once(client: Client) -> None:
    """Design: shared subdirectories once; else a small tree could unfold without end."""
    level = directory()
    blobs = [level]
    for _ in range(40):
        level = directory(dict.fromkeys("abcdefgh", level))
        blobs.append(level)
    client.put(*blobs)
    found = hashes(tree(client, level.digest))
    assert sorted(found) == sorted(blob.hash for blob in blobs)


def test_large_directories_do_not_make_large_messages(client: Client) -> None:
    """page_size: the server may place its own limit; clients take messages of 4 MiB."""
    children = {str(i): directory(filler=1500) for i in range(4)}
    root = directory(children)
    for blob in (*children.values(), root):
        client.upload(blob)
    responses = tree(client, root.digest)
    assert len(responses) > 1
    assert sorted(hashes(responses)) == sorted(blob.hash for blob in (*children.values(), root))


def test_what_is_no_directory_is_refused(client: Client) -> None:
    """The request must be targeted at a Directory."""
    blob = Blob(b"\xff" * 20 + fresh(10).data)
    client.put(blob)
    with fails(INVALID, blob.hash, "Directory"):
        tree(client, blob.digest)


@pytest.mark.parametrize(
    ("digest", "mentioned"),
    [
        (pb.Digest(), "''"),
        (pb.Digest(hash="abc", size_bytes=3), "abc"),
        (pb.Digest(hash="A" * 64, size_bytes=3), "A" * 64),
        (pb.Digest(hash="a" * 64, size_bytes=-3), "-3"),
    ],
)
def test_a_malformed_root_is_refused(client: Client, digest: pb.Digest, mentioned: str) -> None:
    """Design §5: malformed hashes and sizes are INVALID_ARGUMENT everywhere."""
    with fails(INVALID, mentioned):
        tree(client, digest)


def test_a_function_not_served_is_refused(client: Client) -> None:
    """GetTreeRequest.digest_function: one of those that capabilities announce."""
    root = directory()
    client.put(root)
    request = pb.GetTreeRequest(root_digest=root.digest, digest_function=pb.DigestFunction.GITSHA1)
    with fails(INVALID, "10", "gitsha1"):
        list(client.get_tree(request, timeout=PATIENCE))


def test_a_malformed_instance_is_refused(client: Client) -> None:
    """REAPI: no segment of an instance name can be a keyword."""
    root = directory()
    client.put(root)
    request = pb.GetTreeRequest(instance_name="a/uploads", root_digest=root.digest)
    with fails(INVALID, "a/uploads"):
        list(client.get_tree(request, timeout=PATIENCE))
