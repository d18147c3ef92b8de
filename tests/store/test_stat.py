"""What stat counts."""

from __future__ import annotations

import json
import os
from contextlib import closing
from pathlib import Path

from cas import digest as digests
from cas.digest import FUNCTIONS
from cas.store import stat
from cas.store.directory import prepare
from cas.store.files import Files
from cas.store.interface import NewAction
from cas.store.layout import Layout
from cas.store.local import open_store
from cas.store.opening import open_index
from tests.store.conftest import Clock

LARGE = os.urandom(100_000)


def test_counts_bytes_and_ages(tmp_path: Path, clock: Clock) -> None:
    prepare(tmp_path).close()
    layout = Layout(tmp_path)
    (layout.quarantine / "bad").write_bytes(bytes(10))

    def write(*blobs: bytes) -> None:
        with closing(open_store(tmp_path, clock=clock)) as store:
            for data in blobs:
                store.put([(digests.of(data), data)])[0].wait(30)

    write(b"old", LARGE)
    clock.now += 3 * 24 * 3600
    write(b"newer")
    with closing(open_store(tmp_path, clock=clock)) as store:
        action = NewAction(b"result", [digests.of(LARGE).key], True)
        store.put_action("main", digests.of(b"action"), action).wait(30)
        store.contains(digests.of(b"old"))
        store.upload("u", digests.of(b"upload"), 0, b"up").suspend()
    with closing(open_index(layout, Files())) as index:
        found = stat.take(layout, index, now=clock.now)
    # The empty blobs are among those in the index.
    assert (found.inline_blobs.count, found.inline_blobs.bytes) == (2 + len(FUNCTIONS), 8)
    assert (found.file_blobs.count, found.file_blobs.bytes) == (1, len(LARGE))
    assert found.actions.count == 1
    assert (found.uploads.count, found.uploads.bytes) == (1, 2)
    assert (found.quarantine.count, found.quarantine.bytes) == (1, 10)
    assert found.index_bytes > found.index_used_bytes > 0
    by_age = {name: amount.count for name, amount in found.written.items()}
    assert by_age == {"1 hour": 2, "1 day": 0, "1 week": 2, "30 days": 0, "older": len(FUNCTIONS)}
    # What was asked for just now was used; the blob behind the action was not.
    by_use = {name: amount.count for name, amount in found.last_used.items()}
    assert by_use == {"1 hour": 3, "1 day": 0, "1 week": 1, "30 days": 0, "older": len(FUNCTIONS)}
    assert json.loads(json.dumps(found.as_json()))["file_blobs"] == {
        "count": 1,
        "bytes": len(LARGE),
    }
