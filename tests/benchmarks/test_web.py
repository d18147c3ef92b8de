"""The HTTP section against a real server."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from benchmarks import servers, web
from benchmarks.servers import running
from benchmarks.web import WrkFailed


def test_what_is_measured_was_answered_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "PUTS", {1 << 10: 20})
    with running(servers.ours_over_http("cas"), tmp_path) as server:
        cpu, rate = web._put_measured(server, 1 << 10)
        assert cpu >= 0
        assert rate > 0
        with pytest.raises(WrkFailed, match="a PUT was answered"):
            web._put(server.address, [_Lying(b"abc")])
        if shutil.which("wrk") is None:
            pytest.skip("wrk is not installed: only the section itself needs it")
        body = os.urandom(1000)
        with pytest.raises(WrkFailed, match="Non-2xx"):
            web._get(server.address, body, 1)
        web._put(server.address, [body])
        assert web._get(server.address, body, 1) > 0


class _Lying(bytes):
    """Bytes that claim to be more than they are, so that a server must refuse them."""

    def __len__(self) -> int:
        return 1 << 60
