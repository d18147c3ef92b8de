"""Ten thousand hostile calls, shared by the engines; ``python -m tests.fuzz`` makes more."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.cases import METHODS, case
from tests.fuzz.trial import Trial

SEED = 1


@pytest.mark.parametrize(
    ("engine", "numbers"), [("cq", range(7_000)), ("aio", range(7_000, 10_000))]
)
def test_hostile_calls_get_canonical_errors_and_leave_nothing(
    tmp_path: Path, engine: str, numbers: range
) -> None:
    trial = Trial(tmp_path, engine)
    try:
        trial.run(SEED, numbers)
        assert trial.judge() == []
    finally:
        trial.end()
    # Not all calls may die at the first check.
    assert trial.codes["OK"] > len(numbers) / 5
    assert trial.codes["INVALID_ARGUMENT"] > len(numbers) / 5


def test_a_number_makes_the_same_call_every_time() -> None:
    assert [case(SEED, number) for number in range(50)] == [case(SEED, n) for n in range(50)]


def test_every_method_is_called() -> None:
    assert {case(SEED, number).method.path for number in range(500)} == {m.path for m in METHODS}
