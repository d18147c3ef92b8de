"""Tools: counted exactly while they are few, well enough when they are many, bounded always."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cas.metrics import families
from cas.metrics.instruments import OTHER, Metrics
from cas.metrics.tools import EXACT, MAX_NAME, MAX_TOOLS, UNKNOWN, Tools, product
from tests.metrics.reading import value


def ended(tools: Tools, name: str, *, enter: bool = True) -> None:
    """As an engine does it."""
    tools.left -= 1
    if tools.left <= 0:
        tools.count(name, enter=enter)


def counted(metrics: Metrics, tool: str) -> float:
    return value(metrics, families.TOOL_REQUESTS, tool)


def test_few_are_counted_exactly() -> None:
    metrics = Metrics()
    tools = Tools(metrics, str)
    for number in range(EXACT):
        ended(tools, "bazel" if number % 4 else "")
    assert counted(metrics, "bazel") == EXACT * 3 / 4
    assert counted(metrics, UNKNOWN) == EXACT / 4


def test_many_are_estimated_whatever_their_rhythm() -> None:
    metrics = Metrics()
    tools = Tools(metrics, str)
    rounds = 200_000
    for number in range(rounds):
        ended(tools, "even" if number % 16 < 4 else "odd")
    # Six standard deviations of the estimate, and more.
    assert counted(metrics, "even") == pytest.approx(rounds / 4, rel=0.12)
    assert counted(metrics, "odd") == pytest.approx(rounds * 3 / 4, rel=0.06)


def test_names_are_bounded_and_guesses_are_not_entered() -> None:
    metrics = Metrics()
    tools = Tools(metrics, str)
    ended(tools, "guess", enter=False)
    for number in range(3 * MAX_TOOLS):
        ended(tools, f"tool {number} " + "x" * 500)
    assert counted(metrics, OTHER) == 1 + 2 * MAX_TOOLS
    assert counted(metrics, "guess") == 0
    assert counted(metrics, ("tool 0 " + "x" * 500)[: MAX_NAME - 1] + "…") == 1


def test_without_somebody_who_tells_nothing_is_due() -> None:
    tools = Tools()
    for _ in range(10_000):
        ended(tools, "x")


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("ccache/4.10.2", "ccache 4.10.2"),
        ("bazel/release-7.4.1", "bazel release-7.4.1"),
        ("Go-http-client/1.1", "Go-http-client 1.1"),
        ("grpc-python/1.80 grpc-c/50 (linux)", "grpc-python 1.80"),
        ("sccache", "sccache"),
        ("(comment only)", ""),
        ("", ""),
    ],
)
def test_the_first_product_is_the_tool(header: str, name: str) -> None:
    assert product(header) == name


@given(st.text())
def test_any_header_is_read(header: str) -> None:
    assert len(product(header)) <= 129
