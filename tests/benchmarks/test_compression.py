"""The compression table: what counts as a blob, and one small run against the real server."""

from __future__ import annotations

import random
import zipfile
from pathlib import Path

import pytest

from benchmarks import servers
from benchmarks.compression import blobs, measure, row

TEXT = random.Random(1).randbytes(200_000).hex().encode()


def test_blobs_are_files_and_counted_once(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "below").mkdir(parents=True)
    for name in ("one", "below/two"):
        (tree / name).write_bytes(b"the same")
    (tree / "empty").touch()
    (tree / "link").symlink_to("one")
    with zipfile.ZipFile(tmp_path / "some.whl", "w") as wheel:
        wheel.writestr("three", "another")
    (tmp_path / "whole").write_bytes(b"whole")
    found = blobs([tree, tmp_path / "some.whl", tmp_path / "whole", tree])
    assert [[*version.values()] for version in found] == [
        [b"the same"],
        [b"another"],
        [b"whole"],
        [],
    ]


@pytest.mark.parametrize("zstd", [False, True])
def test_a_run(tmp_path: Path, zstd: bool) -> None:
    (tmp_path / "text").write_bytes(TEXT)
    (tmp_path / "small").write_bytes(TEXT[:3_000])
    kind = servers.ours("cas", 1, ("--compression", "zstd"))
    result = measure(kind, blobs([tmp_path / "text", tmp_path / "small"]), tmp_path, zstd=zstd)
    assert result.content == len(TEXT) + 3_000
    for moved in (result.sent, result.received):
        assert moved < 0.7 * result.content if zstd else moved == result.content
    assert 0.4 * result.content < result.stored < 0.9 * result.content
    assert "| cas |" in row("text", kind, zstd, result)


@pytest.mark.parametrize("zstd", [False, True])
def test_a_run_by_chunks(tmp_path: Path, zstd: bool) -> None:
    first = random.Random(2).randbytes(3 << 20)
    (tmp_path / "one").write_bytes(first)
    (tmp_path / "two").write_bytes(first[: 1 << 20] + b"something new" + first[1 << 20 :])
    kind = servers.ours("cas", 1)
    data = blobs([tmp_path / "one", tmp_path / "two"])
    result = measure(kind, data, tmp_path, zstd=zstd, chunks=True)
    assert result.content == 2 * len(first) + 13
    for moved in (result.sent, result.received):
        assert len(first) < moved < 1.9 * len(first)
    # Two blobs, and once the chunks that they share.
    assert 3 * len(first) < result.stored < 3.9 * len(first)
    assert "| CDC" in row("two", kind, zstd, result, chunks=True)
