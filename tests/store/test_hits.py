"""What was asked for and found is summed up over restarts."""

from __future__ import annotations

from pathlib import Path

import pytest

from cas.store import hits
from cas.store.directory import prepare
from cas.store.files import Files
from cas.store.hits import Counts, Keeper
from cas.store.layout import Layout


class Server:
    """What a server counts, in a test's hands."""

    def __init__(self, layout: Layout, run: float) -> None:
        self.layout = layout
        self.run = run
        self.now = 0.0
        self.counts: Counts = dict.fromkeys(hits.NAMES, 0)
        self.writes = 0

    def keeper(self) -> Keeper:
        return Keeper(
            self.layout,
            Files(self.reached),
            self.run,
            lambda: dict(self.counts),
            clock=lambda: 1000.0 + self.run,
            timer=lambda: self.now,
        )

    def reached(self, operation: str, path: str | Path) -> None:
        self.writes += operation == "write-file"


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    prepare(tmp_path).close()
    return Layout(tmp_path)


def kept(layout: Layout) -> tuple[float, list[int]]:
    found = hits.load(layout)
    assert found is not None
    return found.since, list(found.all().values())


def test_it_is_summed_over_restarts_of_the_server_and_of_the_janitor(layout: Layout) -> None:
    assert hits.load(layout) is None
    first = Server(layout, 1.0)
    keeper = first.keeper()
    first.counts |= {"action_hits": 5, "value_misses": 2}
    keeper.save()
    # The janitor dies; the server, and what it counts, goes on.
    first.counts["action_hits"] = 7
    first.keeper().save()
    assert kept(layout) == (1001.0, [7, 0, 0, 2])
    second = Server(layout, 2.0)
    second.counts["action_misses"] = 3
    second.keeper().save()
    assert kept(layout) == (1001.0, [7, 3, 0, 2])


def test_it_is_written_once_in_a_while_and_only_when_it_has_changed(layout: Layout) -> None:
    server = Server(layout, 1.0)
    keeper = server.keeper()
    for _ in range(10):
        keeper.step()
    server.counts["action_hits"] = 1
    keeper.step()
    assert server.writes == 0
    for _ in range(3):
        server.now += hits.SAVE_SECONDS
        keeper.step()
        keeper.step()
    assert server.writes == 1


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'{"since": "x"}', b"\xff", b"null"])
def test_a_file_that_cannot_be_read_counts_for_nothing(layout: Layout, content: bytes) -> None:
    layout.hits.write_bytes(content)
    assert hits.load(layout) is None
    server = Server(layout, 5.0)
    server.counts["value_hits"] = 1
    server.keeper().save()
    assert kept(layout) == (1005.0, [0, 0, 1, 0])
