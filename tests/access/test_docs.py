"""The table of attacks names what tries them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_test_that_the_table_names_is_there() -> None:
    table = (ROOT / "docs/access-attacks.md").read_text()
    places = [*(ROOT / "tests/access").glob("*.py"), *(ROOT / "tests/reapi").glob("*.py")]
    sources = "\n".join(path.read_text() for path in places)
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    for row in rows:
        named = re.findall("`([a-z_]+)`", row.rsplit("|", 2)[1])
        assert named, row
        for name in named:
            assert f"def {name}(" in sources, name
