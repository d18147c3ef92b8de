"""Blobs that are stored as zstd, over HTTP."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard

from tests.http.serving import Served, local_store, serving, sha

DATA = random.Random(3).randbytes(1_000_000).hex().encode()


@pytest.fixture(scope="module")
def packing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, Path]]:
    directory = tmp_path_factory.mktemp("packing") / "store"
    with local_store(directory, compression="zstd") as store, serving(store) as running:
        path = f"/cas/{sha(DATA)}"
        assert running.put(path, DATA).status == 200
        [file] = directory.glob("blobs/sha256/*/*.zst")
        yield running, file


def test_it_comes_back(packing: tuple[Served, Path]) -> None:
    served, _ = packing
    answer = served.get(f"/cas/{sha(DATA)}")
    assert answer.body == DATA
    assert "content-encoding" not in answer.headers
    assert answer.headers["content-length"] == str(len(DATA))


def test_ranges_are_of_the_content(packing: tuple[Served, Path]) -> None:
    served, _ = packing
    for start, end in ((0, 0), (1, 300_000), (262_143, 262_144), (1_999_999, 1_999_999)):
        answer = served.get(
            f"/cas/{sha(DATA)}", Range=f"bytes={start}-{end}", Accept_Encoding="zstd"
        )
        assert answer.status == 206
        assert answer.headers["content-range"] == f"bytes {start}-{end}/{len(DATA)}"
        assert answer.body == DATA[start : end + 1]


def test_zstd_is_sent_as_it_is_stored(packing: tuple[Served, Path]) -> None:
    served, file = packing
    answer = served.get(f"/cas/{sha(DATA)}", Accept_Encoding="zstd")
    assert answer.headers["content-encoding"] == "zstd"
    assert answer.headers["etag"].startswith("W/")
    assert answer.body == file.read_bytes()
    reader = zstandard.ZstdDecompressor().stream_reader(answer.body, read_across_frames=True)
    assert reader.read() == DATA
