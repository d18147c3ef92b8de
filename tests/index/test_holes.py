"""LMDB's free pages, read by hand and given back."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from array import array
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cas.errors import DataLoss
from cas.index import holes
from cas.index.changes import Changes, NewBlob
from cas.index.lmdb import Index


def churn(index: Index, dice: random.Random, steps: int, living: int) -> dict[bytes, bytes]:
    """Enters and removes values of all sizes; those that are there at the end."""
    kept: dict[bytes, bytes] = {}
    for _ in range(steps):
        fresh = {
            b"\1" + dice.randbytes(32) + b"\5": dice.randbytes(dice.randrange(1, 16_000))
            for _ in range(dice.randrange(1, 30))
        }
        index.apply(Changes(7, blobs=[NewBlob(key, data) for key, data in fresh.items()]))
        kept |= fresh
        while len(kept) > living:
            gone = dice.sample(sorted(kept), 20)
            records = [(key, index.record(key)) for key in gone]
            index.remove([(key, record) for key, record in records if record is not None])
            for key in gone:
                del kept[key]
    return kept


def everything(index: Index) -> int:
    """Pages that are accounted for."""
    meta, free = holes.count_free(index)
    return 2 + free + meta.own_pages + index.totals().live_bytes // meta.page_size


@pytest.mark.parametrize("seed", range(4))
def test_every_page_is_free_or_live(index: Index, seed: int) -> None:
    dice = random.Random(seed)
    for _ in range(3):
        churn(index, dice, 20, living=150)
        meta, free = holes.count_free(index)
        assert free > 0
        assert everything(index) == meta.last_page + 1


def test_a_list_of_many_pages_is_read_too(index: Index) -> None:
    # One transaction frees more than fits into a page of the list.
    keys = [b"\1" + number.to_bytes(32, "big") + b"\5" for number in range(2000)]
    index.apply(Changes(7, blobs=[NewBlob(key, bytes(10_000)) for key in keys]))
    found = [(key, index.record(key)) for key in keys]
    index.remove([(key, record) for key, record in found if record is not None])
    meta, free = holes.count_free(index)
    assert free > 5000
    assert everything(index) == meta.last_page + 1


def give_back(index: Index) -> int:
    given = 0
    for min_run in holes.RUNS:
        after: int | None = -1
        while after is not None:
            found = holes.give_back(index, after, min_run)
            given += found.bytes
            after = found.after
    return given


def test_what_is_free_is_given_back_and_nothing_else(index: Index) -> None:
    dice = random.Random(5)
    kept = churn(index, dice, 150, living=1500)
    kept = {**churn(index, dice, 1, living=30), **kept}
    kept = {key: data for key, data in kept.items() if index.record(key)}
    gone = sorted(kept)[30:]
    found = [(key, index.record(key)) for key in gone]
    index.remove([(key, record) for key, record in found if record is not None])
    # Two more commits, or the last one's pages are not free for good.
    index.pin([])
    churn(index, dice, 3, living=2000)
    before = index.totals()
    given = give_back(index)
    after = index.totals()
    assert before.disk_bytes - after.disk_bytes == given > before.disk_bytes // 2
    assert after.used_bytes == before.used_bytes
    assert all(index.inline(key) == data for key, data in kept.items() if key not in gone)
    # There is nothing left to give.
    assert give_back(index) == 0
    # The holes are used again like any page.
    kept = churn(index, dice, 100, living=1000)
    assert index.inline_many(list(kept)) == kept
    meta, _ = holes.count_free(index)
    assert everything(index) == meta.last_page + 1


def test_what_somebody_reads_is_left_alone(index: Index, tmp_path: Path) -> None:
    dice = random.Random(6)
    old = churn(index, dice, 60, living=500)
    script = (
        "import sys; from pathlib import Path; from cas.index.lmdb import Index\n"
        "index = Index(Path(sys.argv[1]), sync=False)\n"
        "with index.reading() as tables:\n"
        "    print('ready', flush=True); sys.stdin.readline()\n"
        "    rows = tables.txn.cursor(tables.data).iternext(keys=False)\n"
        "    print(sum(map(len, rows)), flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "ready\n"
        give_back(index)
        found = [(key, index.record(key)) for key in old]
        index.remove([(key, record) for key, record in found if record is not None])
        index.pin([])
        churn(index, dice, 5, living=2000)
        assert min(index.reader_transactions()) < holes.count_free(index)[0].transaction - 2
        give_back(index)
        process.stdin.write("go\n")
        process.stdin.flush()
        assert int(process.stdout.readline()) == sum(map(len, old.values()))
        # Killed: it no longer counts once it was cleared away.
        os.kill(process.pid, 9)
    index.clear_dead_readers()
    assert give_back(index) > 1_000_000


def test_another_file_is_refused(index: Index, tmp_path: Path) -> None:
    path = tmp_path / "other"
    path.mkdir()
    (path / "data.mdb").write_bytes(bytes(65_536))
    with pytest.raises(DataLoss, match="not LMDB's"):
        holes._Pages(path).meta()
    assert not list(holes.runs(array("Q")))


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.sets(st.integers(0, 300)))
def test_runs(pages: set[int]) -> None:
    found = list(holes.runs(array("Q", sorted(pages, reverse=True))))
    covered = [page for first, count in found for page in range(first, first + count)]
    assert sorted(covered) == sorted(pages)
    for first, count in found:
        assert count > 0
        assert {first - 1, first + count} & pages == set()
