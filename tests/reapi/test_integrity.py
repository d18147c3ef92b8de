"""Checksums as ``checksum.sri`` has them."""

from __future__ import annotations

import base64
import hashlib

import pytest

from cas.digest import BLAKE3, SHA256, SHA384, SHA512
from cas.errors import InvalidArgument
from cas.reapi.integrity import Checksum, parse


def sri(name: str, data: bytes = b"content") -> str:
    return f"{name}-{base64.b64encode(hashlib.new(name, data).digest()).decode()}"


def test_one() -> None:
    assert parse(sri("sha256")) == [Checksum(SHA256, hashlib.sha256(b"content").digest())]
    raw = BLAKE3.hash(b"content")
    assert parse(f"blake3-{base64.b64encode(raw).decode()}") == [Checksum(BLAKE3, raw)]


def test_the_strongest_count() -> None:
    both = parse(f"{sri('sha1')} {sri('sha384')}\t{sri('sha256')} {sri('sha384', b'other')}")
    assert [checksum.function for checksum in both] == [SHA384, SHA384]
    assert parse(f"{sri('sha512')}?opt {sri('sha256')}")[0].function is SHA512


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "sha256",
        "sha256-",
        "sha256-AAAA",
        "md5-1B2M2Y8AsgTpgAmY7PhCfg==",
        sri("sha256")[:-1],
        sri("sha256").replace("sha256", "sha384"),
        sri("sha256") + " x",
        "sha256-" + "*" * 44,
        "sha256-ä",
    ],
)
def test_what_is_no_checksum(text: str) -> None:
    with pytest.raises(InvalidArgument, match="checksum"):
        parse(text)
