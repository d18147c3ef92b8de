"""A process killed at every step: what was acknowledged is there, fsck mends the rest.

Each row of the table in DESIGN.md ("What a crash leaves behind") is one test here: a real child
is stopped with SIGKILL right before the row's operations, at each of their occurrences (of many
like ones: the first, one amid, and the last), and what is left is opened and judged.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGKILL
from typing import Any

import pytest

from cas.errors import CasError, DataLoss
from cas.index import unsent, upkeep
from cas.index.records import action_key
from cas.store import fsck, opening, scrub
from cas.store.directory import occupy, prepare
from cas.store.files import Files
from cas.store.layout import Layout
from cas.store.local import LocalStore, open_store
from tests.store.crash.scenarios import ACTION as ACTION_DIGEST
from tests.store.crash.scenarios import BLOBS, NOW, SCENARIOS, UPLOAD, digest_of, shelved

ROOT = Path(__file__).resolve().parents[3]
MODULE = "tests.store.crash.forker"
FEW = 7
"""Occurrences of one operation in one scenario that are all tried."""


@dataclass(frozen=True)
class Row:
    """One row of the table."""

    scenario: str
    points: tuple[str, ...]
    found: frozenset[str]
    """What fsck finds, at one or the other of the row's points."""

    def __str__(self) -> str:
        return f"{self.scenario}: {', '.join(self.points)}"


def table() -> list[Row]:
    section = (ROOT / "DESIGN.md").read_text().partition("\n## What a crash leaves behind\n")[2]
    lines = section.partition("\n## ")[0].splitlines()
    rows = [line for line in lines if line.startswith("|") and line.count("|") == 6][2:]
    out: list[Row] = []
    scenario = ""
    for line in rows:
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        scenario = cells[0] or scenario
        points = tuple(re.findall("`([^`]+)`", cells[1]))
        found = frozenset() if cells[4] == "nothing" else frozenset(cells[4].split(", "))
        out.append(Row(scenario, points, found))
    return out


class Forker:
    """The process that forks children."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", MODULE],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def play(
        self, directory: Path, scenario: str, step: str, stop: tuple[str, int] | None = None
    ) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {"directory": str(directory), "scenario": scenario, "step": step, "stop": stop}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        self._process.communicate()


def _remove_files(directory: Path) -> None:
    for top, _, names in os.walk(directory):
        for name in names:
            os.unlink(os.path.join(top, name))


@dataclass
class Beginning:
    """Where a scenario begins, and what it passes when nothing stops it."""

    directory: Path
    said: list[tuple[str, Any]]
    points: list[str] = field(default_factory=list)


class Plays:
    """Beginnings, each made once; children start from copies.

    One directory serves them all in turn: making and removing five hundred empty directories
    for each would take longer than everything else.
    """

    def __init__(self, forker: Forker, directory: Path) -> None:
        self._forker = forker
        self._directory = directory
        self._known: dict[str, Beginning] = {}
        self._run = directory / "run"

    def beginning(self, name: str) -> Beginning:
        known = self._known.get(name)
        if known is None:
            directory = self._directory / f"begin-{len(self._known)}"
            if name != "a first start":
                prepare(directory).close()
            prepared = self._forker.play(directory, name, "prepare")
            assert prepared["status"] == 0
            spoilt = SCENARIOS[name].spoilt
            said = [(k, v) for k, v in prepared["said"] if not spoilt & {k, v}]
            known = self._known[name] = Beginning(directory, said)
            whole = self._forker.play(self.copy(known), name, "run")
            assert whole["status"] == 0
            known.points = whole["points"]
        return known

    def copy(self, beginning: Beginning) -> Path:
        target = self._run
        if not beginning.directory.exists() or not target.exists():
            shutil.rmtree(target, ignore_errors=True)
        for path in [*target.glob("index*"), *target.glob("quarantine/*")]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        _remove_files(target)
        if beginning.directory.exists():
            shutil.copytree(beginning.directory, target, dirs_exist_ok=True)
        return target

    def stopped(self, name: str, point: str, occurrence: int) -> tuple[Path, list[tuple[str, Any]]]:
        """The directory that is left, and all that was acknowledged."""
        beginning = self.beginning(name)
        directory = self.copy(beginning)
        played = self._forker.play(directory, name, "run", (point, occurrence))
        assert played["status"] == -SIGKILL, f"{point} {occurrence} was not reached"
        return directory, [*beginning.said, *map(tuple, played["said"])]

    def finish(self, name: str, directory: Path) -> None:
        """Runs the scenario to its end on what is left."""
        assert self._forker.play(directory, name, "run")["status"] == 0


@pytest.fixture(scope="module")
def plays(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plays]:
    with closing(Forker()) as forker:
        yield Plays(forker, tmp_path_factory.mktemp("crash"))


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_table_has_every_step_and_no_other(plays: Plays, name: str) -> None:
    passed = plays.beginning(name).points
    rows = [row for row in table() if row.scenario == name]
    listed = [point for row in rows for point in row.points]
    assert sorted(listed) == sorted(set(passed)), "steps of the code, and of DESIGN.md"


def test_the_table_has_no_other_scenario() -> None:
    assert {row.scenario for row in table()} == set(SCENARIOS)


@pytest.mark.parametrize("row", table(), ids=str)
def test_a_crash(plays: Plays, row: Row) -> None:
    points = plays.beginning(row.scenario).points
    found: set[str] = set()
    for point in row.points:
        count = points.count(point)
        few = range(1, count + 1) if count <= FEW else (1, count // 2, count)
        for occurrence in few:
            directory, said = plays.stopped(row.scenario, point, occurrence)
            where = f"before {point} {occurrence} of {row.scenario}"
            if refuses(directory):
                assert row.scenario == "`reindex`", f"the store does not open {where}"
                plays.finish(row.scenario, directory)
            found |= judge(directory, said, row, where)
            # The same again gets through, on what is left.
            plays.finish(row.scenario, directory)
            look(directory, said, SCENARIOS[row.scenario].spoilt, f"{where}, and all the rest")
    assert found == row.found, f"what fsck finds: {sorted(found)}"


def refuses(directory: Path) -> bool:
    """Whether the store does not open, and tells what to do."""
    try:
        opening.check_index(Layout(directory))
    except DataLoss as error:
        return "`cas reindex`" in str(error)
    return False


def judge(directory: Path, said: list[tuple[str, Any]], row: Row, where: str) -> set[str]:
    """Checks what is left, as it is and after a repair; what fsck found."""
    # As the next start does.
    prepare(directory).close()
    spoilt = SCENARIOS[row.scenario].spoilt
    look(directory, said, spoilt, where)
    report = check(directory, repair=False)
    check(directory, repair=True)
    again = check(directory, repair=False)
    assert not again.found, f"a second fsck finds {dict(again.found)}, {where}"
    look(directory, said, spoilt, f"{where}, repaired")
    return set(report.found)


def check(directory: Path, *, repair: bool) -> fsck.Report:
    layout = Layout(directory)
    with closing(occupy(directory)), closing(opening.open_index(layout, Files())) as index:
        return fsck.check(layout, index, Files(), repair=repair, now=NOW)


def look(directory: Path, said: list[tuple[str, Any]], spoilt: frozenset[str], where: str) -> None:
    """Everything acknowledged reads back right, and nothing visible is half-written."""
    with closing(open_store(directory)) as store:
        last = dict(said)
        for kind, value in said:
            if kind == "blob":
                assert read(store, value) == BLOBS[value], f"{value} {where}"
        if "action" in last:
            action = store.action("main", ACTION_DIGEST)
            assert action is not None, where
            # One that was under way may have got through.
            assert action.result.decode() in (last["action"], "second"), where
        if "size" in last and not store.contains(digest_of("large")):
            size = store.committed_size(UPLOAD)
            if not (store.contains(digest_of("small")) or store.contains(digest_of("text"))):
                assert size is not None, where
                assert size >= last["size"], where
    layout = Layout(directory)
    with closing(opening.open_index(layout, Files())) as index:
        waits = {entry.key for entry in unsent.page(index)}
        for value in [value for kind, value in said if kind == "queued"]:
            key, name = action_key("main", ACTION_DIGEST.key[:33]), value.encode()
            if value in BLOBS:
                key = name = digest_of(value).key
            assert key in waits or shelved(directory, name).exists(), f"{value} {where}"
        for row in upkeep.rows(index):
            if not any(row.key == digest_of(name).key for name in spoilt & BLOBS.keys()):
                assert not row.wrong, f"{row} {where}"
                for _ in scrub.slices(layout, index, Files(), row):
                    pass


def read(store: LocalStore, name: str) -> bytes:
    with closing(store.open(digest_of(name))) as blob:
        data = bytearray(blob.size)
        with suppress(CasError):
            blob.read_into(memoryview(data), 0)
        return bytes(data)
