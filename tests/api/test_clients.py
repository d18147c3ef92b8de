"""Uploads counted by client."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from cas.api.clients import OpenUploads, host
from cas.errors import LimitExceeded


@pytest.mark.parametrize(
    ("peer", "expected"),
    [
        ("ipv4:10.0.0.1:5000", "10.0.0.1"),
        ("ipv6:%5B::1%5D:5000", "%5B::1%5D"),
        ("unix:", "unix:"),
        ("", ""),
    ],
)
def test_host(peer: str, expected: str) -> None:
    assert host(peer) == expected


def test_each_client_has_a_limit_of_its_own() -> None:
    uploads = OpenUploads(2)
    with ExitStack() as held:
        held.enter_context(uploads.one_more("ipv4:10.0.0.1:1"))
        held.enter_context(uploads.one_more("ipv4:10.0.0.1:2"))
        with pytest.raises(LimitExceeded, match=r"2 uploads are open from 10\.0\.0\.1, the limit"):
            held.enter_context(uploads.one_more("ipv4:10.0.0.1:3"))
        held.enter_context(uploads.one_more("ipv4:10.0.0.2:1"))
    with uploads.one_more("ipv4:10.0.0.1:1"):
        assert len(uploads._open) == 1
    assert not uploads._open


def test_no_limit() -> None:
    uploads = OpenUploads(0)
    with ExitStack() as held:
        for port in range(100):
            held.enter_context(uploads.one_more(f"ipv4:10.0.0.1:{port}"))
