"""The pure parts: messages, back-off, cores."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cas.config import Config
from cas.server import backoff, child, cores, messages
from cas.server.messages import Event, Task

exactly = settings(derandomize=True, max_examples=200, deadline=None)


@exactly
@given(st.text(), st.text())
def test_an_event_is_one_line_that_reads_back(kind: str, detail: str) -> None:
    line = messages.encode_event(Event(kind, detail))
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert messages.decode_event(line) == Event(kind, detail)


def test_a_task_is_one_line_that_reads_back() -> None:
    task = Task(
        role="grpc",
        number=3,
        supervisor=41,
        addresses=("127.0.0.1:80", "[::1]:80"),
        config=Config(dir=Path("/srv/a\nb"), durability="batch"),
        board=5,
        sheet=2,
    )
    line = messages.encode_task(task)
    assert line.count(b"\n") == 1
    assert messages.decode_task(line) == task


@exactly
@given(st.integers(1, 10**6), st.floats(0, 1))
def test_a_wait_is_within_its_bounds(failures: int, dice: float) -> None:
    assert backoff.FIRST / 2 <= backoff.delay(failures, dice) <= backoff.LONGEST


@exactly
@given(st.integers(1, 10**6), st.floats(0, 1))
def test_a_further_failure_never_shortens_the_wait(failures: int, dice: float) -> None:
    assert backoff.delay(failures + 1, dice) >= backoff.delay(failures, dice)


@exactly
@given(st.integers(1, 40), st.floats(0, 1))
def test_dice_take_at_most_half(failures: int, dice: float) -> None:
    whole = backoff.delay(failures, 0)
    assert whole / 2 <= backoff.delay(failures, dice) <= whole


@pytest.mark.parametrize(
    ("text", "allowed"),
    [("max 100000\n", None), ("100000 100000\n", 1), ("50000 100000\n", 1), ("99999999 1\n", None),
     ("nonsense\n", None), ("", None)],
)  # fmt: skip
def test_a_quota_lowers_the_cores(tmp_path: Path, text: str, allowed: int | None) -> None:
    quota = tmp_path / "cpu.max"
    quota.write_text(text)
    everything = len(os.sched_getaffinity(0))
    assert cores.available(quota) == (allowed or everything)


def test_no_quota_is_every_core(tmp_path: Path) -> None:
    assert cores.available(tmp_path / "absent") == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("code", "words"), [(0, "exit code 0"), (3, "exit code 3"), (-9, "SIGKILL"), (-99, "signal 99")]
)
def test_how_a_process_ended_in_words(code: int, words: str) -> None:
    assert child.how_it_ended(code) == words
