"""The results file: sections of figures, each with the machine and time it was taken on.

Rule: JSON in and out; its shape is what `benchmarks.report` renders.  A run replaces
the sections that it took and leaves the others.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FORMAT = 1

Results = dict[str, Any]
"""Section name → {"machine": …, "options": …, "servers": …, "data": …}, under "sections"."""


def empty() -> Results:
    return {"format": FORMAT, "sections": {}}


def load(path: Path) -> Results:
    """What the file holds; `empty` where there is none.  Raises ValueError on another format."""
    try:
        results = json.loads(path.read_text())
    except FileNotFoundError:
        return empty()
    if not isinstance(results, dict) or results.get("format") != FORMAT:
        raise ValueError(f"{path} is no results file of format {FORMAT}")
    return results


def save(path: Path, results: Results) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")
