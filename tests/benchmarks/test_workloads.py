"""Workload names and sizes as they are written on the command line."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import workloads
from benchmarks.workloads import DEFAULT_NAMES, KIB, MIB, Workload, parse, parse_size, size_text

bounded = settings(derandomize=True, max_examples=100, deadline=None)


def test_every_default_workload_is_named_once_and_labelled_apart() -> None:
    found = [parse(name) for name in DEFAULT_NAMES]
    assert [workload.name for workload in found] == list(DEFAULT_NAMES)
    assert len({workload.label for workload in found}) == len(DEFAULT_NAMES)


@pytest.mark.parametrize(
    ("name", "expected", "label"),
    [
        ("caps", Workload("caps", "caps"), "GetCapabilities"),
        ("getac", Workload("getac", "getac"), "GetActionResult"),
        ("updateac", Workload("updateac", "updateac"), "UpdateActionResult"),
        ("fmb:1000", Workload("fmb:1000", "fmb", count=1000), "FindMissing, 1,000 digests"),
        ("read:1024", Workload("read:1024", "read", size=KIB), "Read 1 KiB"),
        ("write:1000", Workload("write:1000", "write", size=1000), "Write 1000 B"),
        (
            "write:1048576/16",
            Workload("write:1048576/16", "write", size=MIB, message_bytes=16 * KIB),
            "Write 1 MiB, 16 KiB messages",
        ),
        (
            "batchread:100x1024",
            Workload("batchread:100x1024", "batchread", count=100, size=KIB),
            "BatchRead 100 × 1 KiB",
        ),
        (
            "batchupdate:7x10",
            Workload("batchupdate:7x10", "batchupdate", count=7, size=10),
            "BatchUpdate 7 × 10 B",
        ),
    ],
)
def test_names(name: str, expected: Workload, label: str) -> None:
    assert parse(name) == expected
    assert parse(name).label == label


@pytest.mark.parametrize(
    "name",
    [
        *("", "Read:1", "delete:1", "caps:", "caps:1", "fmb:x", "read", "read:", "read:-1"),
        *("read:0", "read:1x2", "write:1/", "write:1/0", "batchread:100", "batchread:0x1"),
        "batchupdate:1x1/4",
    ],
)
def test_other_names_are_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match="workload") as caught:
        parse(name)
    assert repr(name) in str(caught.value) or name.partition(":")[0] in str(caught.value)


@given(st.integers(1, 2**40))
@bounded
def test_size_text_reads_back(size: int) -> None:
    assert parse_size(size_text(size)) == size


@pytest.mark.parametrize(
    ("text", "size"), [("10G", 10 << 30), ("512MiB", 512 << 20), ("4096", 4096), (" 3kb ", 3072)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "G", "-1", "1.5G", "1T", "10 apples"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="size"):
        workloads.parse_size(text)
