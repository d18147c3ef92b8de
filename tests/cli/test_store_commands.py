"""The commands on a store's directory, from outside: what they print, and their exit codes."""

from __future__ import annotations

import io
import json
import os
import re
from contextlib import closing
from pathlib import Path

import pytest

from cas import digest as digests
from cas.cli.progress import Progress
from cas.digest import FUNCTIONS
from cas.store.backlog import QueueLimits
from cas.store.directory import prepare
from cas.store.layout import Layout
from cas.store.local import StoreOptions, open_store
from tests.cli.test_app import cas

LARGE = os.urandom(150_000)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "store"
    with closing(prepare(path)), closing(open_store(path)) as store:
        for data in (b"small", LARGE):
            store.put([(digests.of(data), data)])[0].wait(30)
    return path


def test_fsck_tells_repairs_and_is_content(directory: Path) -> None:
    ended = cas("fsck", "--dir", str(directory))
    assert ended.returncode == 0, ended.stderr
    entries = 2 + len(FUNCTIONS)
    assert ended.stdout.splitlines() == [
        f"{entries} entries, 1 files (146.5 KiB), 0 uploads (0 B), 0 in quarantine (0 B)",
        "clean",
    ]
    orphan = Layout(directory).blob(digests.of(b"orphan"), 7)
    Path(orphan).write_bytes(b"orphan")
    ended = cas("fsck", CAS_DIR=str(directory))
    assert ended.returncode == 1
    assert ended.stdout.splitlines()[0] == f"orphan file: {orphan}"
    assert ended.stdout.splitlines()[-1] == "1 wrong (1 × orphan file); 1 left"
    ended = cas("fsck", "--repair", "--dir", str(directory))
    assert ended.returncode == 0
    assert f"orphan file: {orphan} (entered)" in ended.stdout
    assert "all repaired" in ended.stdout
    assert cas("fsck", "--dir", str(directory)).returncode == 0


def test_fsck_forgets_what_waits_to_be_sent(tmp_path: Path) -> None:
    path = tmp_path / "store"
    options = StoreOptions(queue=QueueLimits())
    with closing(prepare(path)), closing(open_store(path, options)) as store:
        for size in range(300):
            data = bytes(size + 1)
            store.put([(digests.of(data), data)])[0].wait(30)
    assert json.loads(cas("stat", "--json", "--dir", str(path)).stdout)["unsent"]["count"] == 300
    ended = cas("fsck", "--forget-unsent", "--dir", str(path))
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[0] == "300 writes will not be sent upstream"
    assert ended.stdout.splitlines()[-1] == "clean"
    figures = json.loads(cas("stat", "--json", "--dir", str(path)).stdout)
    assert figures["unsent"] == {"count": 0, "bytes": 0}
    assert figures["inline_blobs"]["count"] == 300 + len(FUNCTIONS)


def test_fsck_and_reindex_refuse_beside_a_server(directory: Path) -> None:
    with closing(prepare(directory)):
        for command in ("fsck", "reindex"):
            ended = cas(command, "--dir", str(directory))
            assert ended.returncode == 1
            assert re.fullmatch(
                rf"cas: {directory} is in use by another server \(pid \d+\).*\n", ended.stderr
            )
        # One that only reads may.
        assert cas("stat", "--dir", str(directory)).returncode == 0


@pytest.mark.parametrize("command", ["fsck", "reindex", "stat", "scrub"])
def test_what_is_no_store_is_left_alone(command: str, tmp_path: Path) -> None:
    for path, said in (
        (tmp_path, "holds no store yet"),
        (tmp_path / "absent", "is no directory"),
    ):
        ended = cas(command, "--dir", str(path))
        assert ended.returncode == 1
        assert said in ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_unreadable_index_does_not_end_fsck_without_a_word(directory: Path) -> None:
    """Noise where pages were can end the process that reads them."""
    file = Layout(directory).index / "data.mdb"
    whole = file.read_bytes()
    for noise in (bytes(4096), b"\xff" * 4096, os.urandom(4096)):
        file.write_bytes(whole[:8192] + noise * ((len(whole) - 8192) // 4096))
        ended = cas("fsck", "--dir", str(directory))
        assert ended.returncode == 1
        assert "`cas reindex`" in ended.stderr
        assert len(ended.stderr.strip().splitlines()[-1]) < 400
    ended = cas("reindex", "--dir", str(directory))
    assert ended.returncode == 0
    assert "1 blobs (146.5 KiB) are in the new index" in ended.stdout
    assert "index.old.0" in ended.stdout
    assert "went with the old index" in ended.stdout
    assert cas("fsck", "--dir", str(directory)).returncode == 0


def test_stat_for_people_and_programs(directory: Path) -> None:
    ended = cas("stat", "--dir", str(directory))
    assert ended.returncode == 0
    assert re.search(r"^  blobs in files +1 +146.5 KiB$", ended.stdout, re.MULTILINE)
    figures = json.loads(cas("stat", "--json", "--dir", str(directory)).stdout)
    assert figures["file_blobs"] == {"count": 1, "bytes": len(LARGE)}
    assert figures["inline_blobs"]["count"] == 1 + len(FUNCTIONS)


def test_a_wrong_option_is_one_line(directory: Path) -> None:
    ended = cas("fsck", "--repai", "--dir", str(directory))
    assert ended.returncode == 2
    assert ended.stderr == "cas: unknown option --repai; did you mean --repair?\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere() -> None:
    terminal, file = Terminal(), io.StringIO()
    for stream in (terminal, file):
        progress = Progress(stream)
        progress("records", 0, 200)
        progress("records", 100, 200)
        progress("records", 200, 200)
        progress("files", 0, 0)
        progress.clear()
    assert file.getvalue() == "records …\nfiles …\n"
    assert "100% 200 of 200" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r\x1b[K")
