"""Last-use times in shared memory."""

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cas.errors import NoSpace
from cas.index.uses import STEP, UseTimes


@pytest.fixture
def uses(tmp_path: Path) -> Iterator[UseTimes]:
    times = UseTimes(tmp_path / "uses")
    yield times
    times.close()


def test_what_was_stored_is_loaded(uses: UseTimes) -> None:
    uses.store([0, 7, 3], 1000)
    uses.store([7], 1001)
    assert [uses.load(serial) for serial in (0, 1, 3, 7)] == [1000, 0, 1000, 1001]
    assert uses.load(10 * STEP) == 0


def test_the_file_grows_by_steps(uses: UseTimes, tmp_path: Path) -> None:
    uses.store([STEP - 1], 5)
    assert (tmp_path / "uses").stat().st_size == 4 * STEP
    uses.store([STEP, 1], 6)
    assert (tmp_path / "uses").stat().st_size == 8 * STEP
    assert [uses.load(serial) for serial in (1, STEP - 1, STEP)] == [6, 5, 6]


def test_processes_see_each_other(uses: UseTimes, tmp_path: Path) -> None:
    other = UseTimes(tmp_path / "uses")
    other.store([5], 9)
    assert uses.load(5) == 9
    uses.store([5, 2 * STEP], 10)
    assert other.load(5) == 10
    assert other.load(2 * STEP) == 10
    other.close()


def test_a_full_disk_is_an_error_and_nothing_worse(
    uses: UseTimes, monkeypatch: pytest.MonkeyPatch
) -> None:
    uses.store([1], 5)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(NoSpace, match="No space left"):
        uses.store([2, STEP, 3], 6)
    assert [uses.load(serial) for serial in (1, 2)] == [5, 6]


@given(st.dictionaries(st.integers(0, 5000), st.integers(1, 2**32 - 1)))
def test_any_times(tmp_path_factory: pytest.TempPathFactory, times: dict[int, int]) -> None:
    path = tmp_path_factory.mktemp("uses") / "uses"
    uses = UseTimes(path)
    for serial, minute in times.items():
        uses.store([serial], minute)
    uses.close()
    uses = UseTimes(path)
    assert {serial: uses.load(serial) for serial in times} == times
    uses.close()
