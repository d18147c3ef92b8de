"""What is upstream, verified by sample and whole."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from pathlib import Path

import pytest

from cas import digest as digests
from cas.digest import BLAKE3, SHA256
from cas.errors import Unavailable
from cas.upstream import keys
from cas.upstream.asking import Asking
from cas.upstream.checking import Checked, scrub
from cas.upstream.objects import Refused
from cas.upstream.trying import Patience
from tests.server.serving import PATIENCE, ROOT
from tests.upstream.bucket import Bucket
from tests.upstream.test_tier import some_bytes


def filled(bucket: Bucket, count: int) -> list[str]:
    """Names of blobs that are there, of two functions."""
    names = []
    for number in range(count):
        data = some_bytes(50, number)
        function = (SHA256, BLAKE3)[number % 2]
        digest = digests.of(data, function)
        names.append(keys.blob(digest.key[: 1 + function.length], function))
        bucket.objects[names[-1]] = data
    bucket.objects["v1/cas/sha256/ab/README"] = b"not of this layout"
    bucket.objects["v1/ac/=/sha256/ab/" + "ab" * 32] = b"no blob"
    return names


def scrubbed(bucket: Bucket, most: int = 0) -> list[Checked]:
    async def run() -> list[Checked]:
        asking = Asking(bucket, Patience(20.0, 8))
        return [found async for found in scrub(asking, most, random.Random(5))]

    return asyncio.run(run())


def test_all_of_it_is_read_once(bucket: Bucket) -> None:
    names = filled(bucket, 60)
    found = scrubbed(bucket)
    assert sorted(checked.key for checked in found) == sorted(names)
    assert all(checked.is_right and checked.size == 50 for checked in found)
    assert bucket.count("get") == 60
    assert bucket.count("copy") == 0


@pytest.mark.parametrize("most", [1, 7, 60, 100])
def test_a_sample_is_as_large_as_it_should_be(bucket: Bucket, most: int) -> None:
    filled(bucket, 60)
    assert len(scrubbed(bucket, most)) == min(most, 60)


def test_what_is_bad_is_told_and_moved_away(bucket: Bucket) -> None:
    names = filled(bucket, 20)
    bucket.objects[names[3]] += b"x"
    bucket.objects[names[4]] = b""
    bad = {checked.key for checked in scrubbed(bucket) if not checked.is_right}
    assert bad == {names[3], names[4]}
    assert not bad & bucket.objects.keys()
    assert sum(key.startswith("v1/quarantine/cas/") for key in bucket.objects) == 2
    assert all(checked.is_right for checked in scrubbed(bucket))


def test_what_cannot_be_had_is_no_damage(bucket: Bucket) -> None:
    filled(bucket, 5)
    bucket.error = Refused("no")
    with pytest.raises(Unavailable, match="no"):
        scrubbed(bucket)


class TestCommand:
    @pytest.fixture
    def flags(self, tmp_path: Path) -> list[str]:
        return ["--upstream", f"file://{tmp_path}/bucket"]

    def test_it_tells_and_moves(self, flags: list[str], tmp_path: Path) -> None:
        data = b"some content"
        digest = digests.of(data)
        path = tmp_path / "bucket" / keys.blob(digest.key[:33], SHA256)
        path.parent.mkdir(parents=True)
        path.write_bytes(data)
        assert scrub_command(*flags) == (0, "1 blobs, 12 B read: all well\n", "")
        path.write_bytes(b"another content")
        code, out, _ = scrub_command(*flags, "--sample", "10")
        assert code == 1
        assert f"bad: v1/cas/sha256/{digest.hex[:2]}/{digest.hex}\n" in out
        assert "1 bad, moved to quarantine" in out
        assert not path.exists()

    @pytest.mark.parametrize(
        ("more", "said"),
        [
            (["--sample", "x"], "--sample"),
            (["--upstream", "none"], "upstream is none"),
            (["--upstream", "grpc://ci:8980"], "grpc://ci:8980 is a server"),
        ],
        ids=["sample", "none", "server"],
    )
    def test_wrong_options(self, flags: list[str], more: list[str], said: str) -> None:
        code, _, told = scrub_command(*flags, *more)
        assert code == 2
        assert said in told


def scrub_command(*arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr; in a process of its own, whose log it sets up."""
    command = [sys.executable, "-m", "cas", "admin", "upstream", "scrub", *arguments]
    ended = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    return ended.returncode, ended.stdout, ended.stderr
