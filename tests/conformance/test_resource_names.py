"""Names that are none: refused alike by Read, Write and QueryWriteStatus, naming what is wrong.

Sources: REAPI, comment of service ContentAddressableStorage; design §5: malformed names,
hashes and sizes are INVALID_ARGUMENT everywhere.
"""

from __future__ import annotations

from collections.abc import Callable

import grpc
import pytest

from cas.pb import bytestream_pb2 as bs
from tests.conformance.client import Client, fails

INVALID = grpc.StatusCode.INVALID_ARGUMENT

HASH = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
UUID = "3f0b1a9e-8c1d-4f65-9f5a-6a1a1f8f4d2b"

MALFORMED = {
    "empty segment": ("/", "/"),
    "words": ("hello", "hello"),
    "dots": ("..", ".."),
    "zero byte": ("\0", "\\x00"),
    "no hash": ("blobs", "blobs"),
    "no size": (f"blobs/{HASH}", HASH),
    "empty size": (f"blobs/{HASH}/", HASH),
    "something after the size": (f"blobs/{HASH}/5/x", "follows"),
    "slash after the size": (f"blobs/{HASH}/5/", "follows"),
    "leading slash": (f"/blobs/{HASH}/5", "slash"),
    "empty segment in the instance": (f"a//b/blobs/{HASH}/5", "a//b"),
    "dots in the instance": (f"a/../b/blobs/{HASH}/5", "a/../b"),
    "dot in the instance": (f"a/./b/blobs/{HASH}/5", "a/./b"),
    "zero byte in the instance": (f"a\0b/blobs/{HASH}/5", "a\\x00b"),
    "line feed in the instance": (f"a\nb/blobs/{HASH}/5", "a\\nb"),
    "instance too long": (f"{'x' * 256}/blobs/{HASH}/5", "256 bytes"),
    "instance of 10 kB": (f"{'x' * 10_000}/blobs/{HASH}/5", "10000 bytes"),
    "keyword actions in the instance": (f"a/actions/blobs/{HASH}/5", "actions"),
    "keyword actionResults in the instance": (f"actionResults/blobs/{HASH}/5", "actionResults"),
    "keyword operations in the instance": (f"operations/a/blobs/{HASH}/5", "operations"),
    "keyword capabilities in the instance": (f"capabilities/blobs/{HASH}/5", "capabilities"),
    "keyword blobs in the instance": (f"blobs/a/blobs/{HASH}/5", "'a'"),
    "hash too short": (f"blobs/{HASH[:-1]}/5", HASH[:-1]),
    "hash too long": (f"blobs/{HASH}0/5", HASH + "0"),
    "hash of another function": (f"blobs/{'a' * 40}/5", "a" * 40),
    "capitals in the hash": (f"blobs/{HASH.upper()}/5", HASH.upper()),
    "no hex": (f"blobs/{HASH[:-1]}g/5", HASH[:-1] + "g"),
    "other digits": (f"blobs/{HASH[:-1]}٣/5", HASH[:-1]),
    "sha256 named": (f"blobs/sha256/{HASH}/5", "sha256"),
    "a function not served": (f"blobs/gitsha1/{'a' * 40}/5", "gitsha1"),
    "a function not enabled": (f"blobs/sha256tree/{HASH}/5", "'sha256tree' is not served"),
    "the length of one not enabled": (f"blobs/{'a' * 40}/5", "64 (sha256), 64 (blake3, named)"),
    "negative size": (f"blobs/{HASH}/-1", "-1"),
    "signed size": (f"blobs/{HASH}/+1", "+1"),
    "size with a zero in front": (f"blobs/{HASH}/05", "05"),
    "size in words": (f"blobs/{HASH}/five", "five"),
    "size with a fraction": (f"blobs/{HASH}/5.0", "5.0"),
    "size with an underscore": (f"blobs/{HASH}/1_0", "1_0"),
    "size in other digits": (f"blobs/{HASH}/٣", "٣"),
    "size beyond 63 bits": (f"blobs/{HASH}/9223372036854775808", "9223372036854775808"),
    "size of 10 kB": (f"blobs/{HASH}/{'9' * 10_000}", "9" * 40),
    "compressor not served": (f"compressed-blobs/lzma/{HASH}/5", "lzma"),
    "identity as a compressor": (f"compressed-blobs/identity/{HASH}/5", "identity"),
    "no compressor": (f"compressed-blobs/{HASH}/5", HASH),
}

MALFORMED_UPLOADS = {
    "no uuid": (f"uploads/blobs/{HASH}/5", HASH),
    "empty uuid": (f"uploads//blobs/{HASH}/5", "uuid"),
    "dots for a uuid": (f"uploads/../blobs/{HASH}/5", "uuid"),
    "zero byte in the uuid": (f"uploads/a\0/blobs/{HASH}/5", "a\\x00"),
    "uuid too long": (f"uploads/{'x' * 129}/blobs/{HASH}/5", "129 bytes"),
    "nothing after the uuid": (f"uploads/{UUID}", UUID),
    "no keyword after the uuid": (f"uploads/{UUID}/{HASH}/5", HASH),
    "uploads twice": (f"uploads/{UUID}/uploads/{UUID}/blobs/{HASH}/5", "uploads"),
    "no size": (f"uploads/{UUID}/blobs/{HASH}", HASH),
    "metadata for a size": (f"uploads/{UUID}/blobs/{HASH}/name.txt", "name.txt"),
    "negative size": (f"uploads/{UUID}/blobs/{HASH}/-1", "-1"),
    "capitals in the hash": (f"uploads/{UUID}/blobs/{HASH.upper()}/5", HASH.upper()),
    "compressor not served": (f"uploads/{UUID}/compressed-blobs/lzma/{HASH}/5", "lzma"),
    "identity as a compressor": (
        f"uploads/{UUID}/compressed-blobs/identity/{HASH}/5",
        "identity",
    ),
}


def read(client: Client, name: str) -> None:
    client.read(name)


def write(client: Client, name: str) -> None:
    client.write([bs.WriteRequest(resource_name=name, data=b"hello", finish_write=True)])


def query(client: Client, name: str) -> None:
    client.query(name)


@pytest.mark.parametrize(("name", "mentioned"), MALFORMED.values(), ids=MALFORMED.keys())
@pytest.mark.parametrize("call", [read, write, query])
def test_malformed_names_are_refused(
    client: Client, call: Callable[[Client, str], None], name: str, mentioned: str
) -> None:
    """Design §5: malformed names, hashes and sizes are INVALID_ARGUMENT everywhere."""
    with fails(INVALID, mentioned):
        call(client, name)


@pytest.mark.parametrize(
    ("name", "mentioned"), MALFORMED_UPLOADS.values(), ids=MALFORMED_UPLOADS.keys()
)
@pytest.mark.parametrize("call", [write, query])
def test_malformed_names_of_uploads_are_refused(
    client: Client, call: Callable[[Client, str], None], name: str, mentioned: str
) -> None:
    """Design §5: likewise for names of uploads, below instances too."""
    with fails(INVALID, mentioned):
        call(client, name)
    with fails(INVALID, mentioned):
        call(client, f"main/{name}")


@pytest.mark.parametrize("call", [read, query])
def test_an_empty_name_is_refused(client: Client, call: Callable[[Client, str], None]) -> None:
    """ReadRequest and QueryWriteStatusRequest: the name says which resource."""
    with fails(INVALID, "''"):
        call(client, "")


@pytest.mark.parametrize("call", [read, write, query])
def test_a_hostile_name_does_not_come_back_whole(
    client: Client, call: Callable[[Client, str], None]
) -> None:
    """Messages name the offending value, shortened: no line of a log is the client's to fill."""
    name = f"{'x' * 100_000}/blobs/{HASH}/5"
    with pytest.raises(grpc.RpcError) as caught:
        call(client, name)
    assert len(caught.value.details() or "") < 1000
