"""Casload's one line, and everything else that it may print."""

from __future__ import annotations

import pytest

from benchmarks.generator import parse_casload
from benchmarks.workloads import parse

LINE = (
    "cas            caps                   c=16    27469.7 op/s       0.0 MiB/s  "
    "p50     0.47 ms p99     2.50 ms  server cpu      31.5 us/op"
)


def test_a_line_of_figures() -> None:
    sample = parse_casload(LINE + "\n", "cas", parse("caps"), 16, 2, 2.0)
    assert sample.valid
    assert (sample.server, sample.workload, sample.concurrency, sample.round) == (
        "cas",
        "caps",
        16,
        2,
    )
    assert sample.cpu_us == pytest.approx(31.5)
    assert sample.rate == pytest.approx(27469.7)
    assert (sample.p50_ms, sample.p99_ms) == (0.47, 2.5)


def test_errors_make_it_invalid() -> None:
    line = LINE + "  ERRORS 51: rpc error: code = Unavailable desc = gone\n"
    sample = parse_casload(line, "cas", parse("caps"), 16, 0, 2.0)
    assert not sample.valid
    assert sample.problem == "51 errors: rpc error: code = Unavailable desc = gone"


@pytest.mark.parametrize(
    ("output", "problem"),
    [
        ("", "1 errors: casload printed nothing"),
        (
            "cas            setup failed: rpc error\n",
            "1 errors: cas setup failed: rpc error",
        ),
    ],
)
def test_no_figures_is_a_failed_sample(output: str, problem: str) -> None:
    assert parse_casload(output, "cas", parse("caps"), 1, 0, 1.0).problem == problem
