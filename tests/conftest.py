"""Settings of the whole suite, and what all of it shares.

Rule: property tests run the same examples every time, untimed.
"""

import pytest
from hypothesis import settings

from tests.shelves import Shelves

settings.register_profile("cas", derandomize=True, deadline=None, database=None, print_blob=True)
settings.load_profile("cas")


def pytest_make_parametrize_id(config: pytest.Config, val: object, argname: str) -> str | None:
    """Long values are often random, and tests must have the same names in every process that
    shares them (pytest-xdist)."""
    return argname if isinstance(val, str | bytes) and len(val) > 60 else None


@pytest.fixture(scope="session")
def shelves(tmp_path_factory: pytest.TempPathFactory) -> Shelves:
    return Shelves(tmp_path_factory.mktemp("shelves"))
