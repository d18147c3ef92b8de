"""Instruments: what ends up in which number."""

from __future__ import annotations

import logging

import grpc
from hypothesis import given, settings
from hypothesis import strategies as st

from cas.metrics import families
from cas.metrics.instruments import MAX_INSTANCES, OTHER, Metrics
from tests.metrics.reading import numbers

SIZES = families.READ_SIZES


def requests(metrics: Metrics, code: str, instance: str) -> float:
    return numbers(metrics, families.REQUESTS, "grpc", "S/M", code, instance)[0]


def test_a_gauge_goes_both_ways() -> None:
    metrics = Metrics()
    gauge = metrics.gauge(families.UPLOADS_OPEN)
    gauge.add(3)
    gauge.add(-1)
    assert numbers(metrics, families.UPLOADS_OPEN) == [2.0]
    gauge.set(9)
    assert numbers(metrics, families.UPLOADS_OPEN) == [9.0]


def test_a_bound_belongs_to_its_bucket() -> None:
    metrics = Metrics()
    histogram = metrics.histogram(SIZES)
    for value in (0, 1024, 1025, 2.0**32, 2.0**32 + 1):
        histogram.observe(value)
    assert numbers(metrics, SIZES) == [2, 1, 0, 0, 0, 0, 1, 1, 1024 + 1025 + 2 * 2.0**32 + 1]


@settings(max_examples=100, derandomize=True)
@given(st.lists(st.one_of(st.integers(0, 2**33), st.sampled_from([int(b) for b in SIZES.bounds]))))
def test_many_at_once_are_as_one_after_another(values: list[int]) -> None:
    one, many = Metrics(), Metrics()
    for value in values:
        one.histogram(SIZES).observe(value)
    many.histogram(SIZES).observe_all(values)
    assert numbers(one, SIZES) == numbers(many, SIZES)


def test_a_request_counts_once_everywhere() -> None:
    metrics = Metrics()
    method = metrics.requests("grpc", "S/M")
    method.ended(None, "main", 0.0003, 120, 4096)
    method.ended(None, "main", 100.0, 1, 2)
    method.ended(grpc.StatusCode.NOT_FOUND, "main", 0.01, 0, 0)
    method.ended("CANCELLED", "main", 0.01, 0, 0)
    assert requests(metrics, "OK", "main") == 2
    assert requests(metrics, "NOT_FOUND", "main") == 1
    assert requests(metrics, "CANCELLED", "main") == 1
    seconds = numbers(metrics, families.REQUEST_SECONDS, "grpc", "S/M")
    bounds = families.REQUEST_SECONDS.bounds
    assert seconds[bounds.index(0.0005)] == 1
    assert seconds[bounds.index(0.01)] == 2
    assert seconds[-2] == 1
    assert seconds[-1] == 0.0003 + 100.0 + 0.01 + 0.01
    assert numbers(metrics, families.RECEIVED_BYTES, "grpc", "S/M") == [121]
    assert numbers(metrics, families.SENT_BYTES, "grpc", "S/M") == [4098]


def test_instances_are_bounded_and_only_success_names_one() -> None:
    metrics = Metrics()
    method = metrics.requests("grpc", "S/M")
    not_found = grpc.StatusCode.NOT_FOUND
    method.ended(not_found, "guess", 0, 0, 0)
    assert requests(metrics, "NOT_FOUND", OTHER) == 1
    for number in range(MAX_INSTANCES * 3):
        for _ in range(2):
            method.ended(None, f"i{number}", 0, 0, 0)
    method.ended(None, "", 0, 0, 0)
    method.ended(not_found, "i0", 0, 0, 0)
    assert requests(metrics, "NOT_FOUND", "i0") == 1
    assert requests(metrics, "OK", "") == 1
    assert requests(metrics, "OK", f"i{MAX_INSTANCES - 1}") == 2
    assert requests(metrics, "OK", OTHER) == MAX_INSTANCES * 2 * 2
    # A method met later knows the same names.
    later = metrics.requests("http", "GET")
    later.ended(None, "i0", 0, 0, 0)
    later.ended(None, "new", 0, 0, 0)
    found = numbers(metrics, families.REQUESTS, "http", "GET", "OK", OTHER)
    assert found == numbers(metrics, families.REQUESTS, "http", "GET", "OK", "i0") == [1]


def test_warnings_and_worse_are_counted_by_logger() -> None:
    metrics = Metrics()
    logger = logging.getLogger("cas.test.metrics")
    counter = metrics.count_log(logger)
    try:
        logger.info("fine")
        logger.warning("hm")
        for _ in range(3):
            logger.error("no")
    finally:
        logger.removeHandler(counter)
    assert numbers(metrics, families.LOGGED, "warning", "cas.test.metrics") == [1]
    assert numbers(metrics, families.LOGGED, "error", "cas.test.metrics") == [3]
    assert numbers(metrics, families.LOGGED, "info", "cas.test.metrics") == [0]
