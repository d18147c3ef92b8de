"""An index in a directory of its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from cas.index.lmdb import Index


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    opened = Index(tmp_path, sync=False)
    yield opened
    opened.close()
