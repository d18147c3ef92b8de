"""The workspace of the cached build, and the reading of Bazel's summary."""

from __future__ import annotations

import re

import pytest

from benchmarks.bazel import BuildFailed, build_file, found_hits


@pytest.mark.parametrize(
    ("line", "hits"),
    [
        ("INFO: 201 processes: 200 remote cache hit, 1 internal.", 200),
        ("INFO: 201 processes: 150 disk cache hit, 50 remote cache hit, 1 internal.", 200),
        ("INFO: 4 processes: 1 internal, 3 local.", 0),
        ("INFO: 1 process: 1 internal.", 0),
    ],
)
def test_hits(line: str, hits: int) -> None:
    assert found_hits(f"INFO: Elapsed time: 1s\n{line}\nINFO: Build completed\n") == hits


def test_no_summary_is_an_error() -> None:
    with pytest.raises(BuildFailed, match="no summary"):
        found_hits("INFO: Build completed successfully\n")


@pytest.mark.parametrize("actions", [1, 3, 40])
def test_every_target_depends_on_an_earlier_one_or_the_file(actions: int) -> None:
    lines = build_file(actions).splitlines()[1:]
    assert len(lines) == actions
    seen = {"nonce.txt"}
    for line in lines:
        match = re.fullmatch(
            r'random_bytes\(name = "(\w+)", srcs = \["(.+)"\], size = [1-9]\d*\)', line
        )
        assert match is not None
        assert match[2] in seen
        seen.add(f":{match[1]}")
