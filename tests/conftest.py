"""Settings of the whole suite: property tests run the same examples every time, untimed."""

import pytest
from hypothesis import settings

settings.register_profile("cas", derandomize=True, deadline=None, database=None, print_blob=True)
settings.load_profile("cas")


def pytest_make_parametrize_id(config: pytest.Config, val: object, argname: str) -> str | None:
    """Long values are often random, and tests must have the same names in every process that
    shares them (pytest-xdist)."""
    return argname if isinstance(val, str | bytes) and len(val) > 60 else None
