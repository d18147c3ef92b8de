"""Tables: rows of figures as text and as Markdown.

Rule: pure; figures in, lines out.  The server's CPU time comes first in every cell;
an invalid cell shows its problem and no figure.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks import workloads
from benchmarks.stats import OURS, Cell, Row, is_ours

HEADINGS = "server CPU µs/op · ops/s · p50 / p99 ms"


def number(value: float) -> str:
    """Three significant digits, thousands separated: 0.0423, 4.23, 42.3, 42,300."""
    if value != value:
        return "–"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    if abs(value) >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if abs(value) >= 1 or value == 0 else f"{value:.3g}"


def bytes_text(count: float) -> str:
    """``12.3 MiB``; unlike `workloads.size_text`, rounded."""
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= factor:
            return f"{number(count / factor)} {unit}"
    return f"{count:.0f} B"


def ratio_text(ratio: float | None) -> str:
    return "–" if ratio is None else f"{ratio:.2f}"


def cell_text(cell: Cell | None) -> str:
    if cell is None:
        return "–"
    if not cell.valid:
        return f"invalid: {cell.problem}"
    return " · ".join(
        (
            number(cell.cpu_us),
            f"{number(cell.rate)}/s",
            f"{number(cell.p50_ms)} / {number(cell.p99_ms)}",
        )
    )


def row_label(row: Row, with_concurrency: bool) -> str:
    label = workloads.parse(row.workload).label
    return f"{label}, {row.concurrency} in flight" if with_concurrency else label


def servers_of(rows: Sequence[Row]) -> list[str]:
    """Ours first, then the peers in the order in which they ran."""
    seen = dict.fromkeys(server for row in rows for server in row.cells)
    return sorted(seen, key=lambda server: not is_ours(server))


def comparison(rows: Sequence[Row]) -> list[list[str]]:
    """Headings and body of the main table; the last column is ours ÷ the best peer."""
    servers = servers_of(rows)
    several = len({row.concurrency for row in rows}) > 1
    cells = [["operation", *servers, f"{OURS} ÷ best peer"]]
    for row in rows:
        best = row.best_peer()
        ratio = ratio_text(row.ratio())
        cells.append(
            [
                row_label(row, several),
                *(cell_text(row.cells.get(server)) for server in servers),
                f"{ratio} ({best})" if best and ratio != "–" else ratio,
            ]
        )
    return cells


def verdict(rows: Sequence[Row]) -> str:
    """How many rows ours leads, and which it does not."""
    ratios = [(row, ratio) for row in rows if (ratio := row.ratio()) is not None]
    if not ratios:
        return "no row has both ours and a peer"
    several = len({row.concurrency for row in rows}) > 1
    behind = [f"{row_label(row, several)} {ratio:.2f}" for row, ratio in ratios if ratio >= 1]
    invalid = sum(not cell.valid for row in rows for cell in row.cells.values())
    return (
        f"{OURS} uses less CPU than every peer in {len(ratios) - len(behind)} of {len(ratios)} rows"
        + (f"; not in: {', '.join(behind)}" if behind else "")
        + (f"; {invalid} cells are invalid" if invalid else "")
    )


def text(cells: Sequence[Sequence[str]]) -> str:
    """Aligned columns, the first to the left, the others to the right."""
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    return "\n".join(
        "  ".join(
            value.ljust(width) if column == 0 else value.rjust(width)
            for column, (value, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    )


def markdown(cells: Sequence[Sequence[str]]) -> str:
    """A GitHub table; what follows the first figure of a cell stays in small print."""
    head, *body = [[value.replace("|", "\\|") for value in line] for line in cells]
    rule = ["---", *("---:" for _ in head[1:])]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *body))
