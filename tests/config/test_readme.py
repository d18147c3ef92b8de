"""The README's table of options is the code's."""

from __future__ import annotations

import re
from pathlib import Path

from cas import config

ROOT = Path(__file__).resolve().parents[2]


def table() -> list[list[str]]:
    """The rows of the options table, cell by cell, less its head and ``--config``."""
    section = (ROOT / "README.md").read_text().partition("\n## Options\n")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `--")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]
    assert cells[0][2] == "`CAS_CONFIG`"
    return cells[1:]


def test_every_option_is_in_the_readme_as_it_is_in_the_code() -> None:
    assert table() == [
        [
            f"`{option.flag} {option.kind.placeholder}`".replace("|", r"\|"),
            f"`{option.name}`",
            f"`{option.variable}`",
            f"`{option.default_text}`",
            option.help,
        ]
        for option in config.options()
    ]


def test_the_files_that_the_readme_links_to_are_there() -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]+)\)", (ROOT / "README.md").read_text())
    assert links
    for link in links:
        assert (ROOT / link).exists(), link
