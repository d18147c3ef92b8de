"""A store's directory: made, locked, and left alone when it is not ours."""

from pathlib import Path

import pytest

from cas.errors import FormatMismatch, StoreInUse
from cas.store.directory import prepare
from cas.store.layout import FORMAT_VERSION


def snapshot(path: Path) -> dict[Path, bytes | None]:
    return {p: p.read_bytes() if p.is_file() else None for p in path.rglob("*")}


def test_a_new_directory_becomes_a_store(tmp_path: Path) -> None:
    lock = prepare(tmp_path / "deep" / "store")
    assert (tmp_path / "deep/store/format").read_text() == f"{FORMAT_VERSION}\n"
    assert len(list((tmp_path / "deep/store/blobs/sha256").iterdir())) == 256
    lock.close()
    prepare(tmp_path / "deep" / "store").close()


def test_an_interrupted_start_goes_on(tmp_path: Path) -> None:
    for name in ("index", "blobs", "lost+found"):
        (tmp_path / name).mkdir()
    (tmp_path / "format.new").write_text("cas")
    prepare(tmp_path).close()
    assert (tmp_path / "format").read_text() == f"{FORMAT_VERSION}\n"


def test_one_server_at_a_time(tmp_path: Path) -> None:
    lock = prepare(tmp_path)
    with pytest.raises(StoreInUse, match=f"{tmp_path} is in use .*pid [0-9]+"):
        prepare(tmp_path)
    lock.close()
    prepare(tmp_path).close()


@pytest.mark.parametrize("line", ["cas 2", "", "something else entirely", "\udcff"])
def test_another_format_is_refused_untouched(tmp_path: Path, line: str) -> None:
    prepare(tmp_path).close()
    (tmp_path / "format").write_text(line, errors="surrogateescape")
    before = snapshot(tmp_path)
    with pytest.raises(FormatMismatch, match=r"format .* this release reads 'cas 1'"):
        prepare(tmp_path)
    assert snapshot(tmp_path) == before


def test_foreign_files_are_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    before = snapshot(tmp_path)
    with pytest.raises(FormatMismatch, match=r"not empty .*thesis.tex"):
        prepare(tmp_path)
    assert snapshot(tmp_path) == before
