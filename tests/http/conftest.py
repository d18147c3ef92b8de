"""A server for each store, shared by a module's tests: each uses content of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cas.store.memory import MemoryStore
from tests.http.serving import Served, local_store, serving


@pytest.fixture(scope="package", params=["memory", "local"])
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    if request.param == "memory":
        with serving(MemoryStore()) as running:
            yield running
    else:
        directory: Path = tmp_path_factory.mktemp("http") / "store"
        with local_store(directory) as store, serving(store) as running:
            yield running
