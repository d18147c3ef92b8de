"""The main table as a picture: server CPU time for one operation, one dot for each server.

Rule: pure; rows in, SVG text out, with no library.  The axis is logarithmic, since
the operations span five orders of magnitude; what is to the left costs less.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

from benchmarks.stats import Row, is_ours
from benchmarks.table import number, row_label, servers_of

WIDTH = 960
LEFT = 270
RIGHT = 30
TOP = 70
STEP = 30
BOTTOM = 50

_OURS = "#c2185b"
_PEERS = ("#1565c0", "#2e7d32", "#ef6c00", "#6a1b9a", "#00838f", "#5d4037")


def plot(rows: Sequence[Row]) -> str:
    """An SVG document; rows without a valid cell are left out."""
    shown = [row for row in rows if any(_drawable(row, server) for server in row.cells)]
    values = [
        cell.cpu_us for row in shown for server, cell in row.cells.items() if _drawable(row, server)
    ]
    low = math.floor(math.log10(min(values, default=1.0)))
    high = max(low + 1, math.ceil(math.log10(max(values, default=10.0))))
    colours = _colours(servers_of(shown))
    several = len({row.concurrency for row in shown}) > 1
    height = TOP + STEP * len(shown) + BOTTOM

    def place(value: float) -> float:
        return LEFT + (math.log10(value) - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
            f'width="{WIDTH}" height="{height}" font-family="sans-serif" font-size="13">'
        ),
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        (
            f'<text x="{LEFT}" y="22" font-size="15" font-weight="bold">'
            "Server CPU time for one operation (less is better)</text>"
        ),
    ]
    parts += _legend(colours)
    parts += _axis(low, high, place, height)
    for position, row in enumerate(shown):
        y = TOP + STEP * position + STEP / 2
        label = escape(row_label(row, several))
        parts.append(f'<text x="{LEFT - 12}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#eeeeee"/>'
        )
        # Ours last, so that it lies on top.
        for server in sorted(row.cells, key=is_ours):
            if _drawable(row, server):
                value = row.cells[server].cpu_us
                radius = 7 if is_ours(server) else 5
                parts.append(
                    f'<circle cx="{place(value):.1f}" cy="{y:.1f}" r="{radius}" '
                    f'fill="{colours[server]}" fill-opacity="0.85">'
                    f"<title>{escape(server)}: {number(value)} µs</title></circle>"
                )
    parts.append("</svg>")
    return "\n".join(parts) + "\n"


def _drawable(row: Row, server: str) -> bool:
    """A run too short for the kernel's clock shows 0, which a logarithm cannot."""
    cell = row.cells[server]
    return cell.valid and cell.cpu_us > 0


def _colours(servers: Sequence[str]) -> dict[str, str]:
    peers = [server for server in servers if not is_ours(server)]
    colours = {server: _PEERS[place % len(_PEERS)] for place, server in enumerate(peers)}
    return {server: colours.get(server, _OURS) for server in servers}


def _legend(colours: dict[str, str]) -> list[str]:
    parts = []
    x = float(LEFT)
    for server, colour in colours.items():
        parts.append(f'<circle cx="{x + 5:.0f}" cy="44" r="5" fill="{colour}"/>')
        parts.append(f'<text x="{x + 15:.0f}" y="48">{escape(server)}</text>')
        x += 34 + 7.5 * len(server)
    return parts


def _axis(low: int, high: int, place: Callable[[float], float], height: int) -> list[str]:
    parts = []
    for power in range(low, high + 1):
        x = place(10.0**power)
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{height - BOTTOM}" stroke="#cccccc"/>'
        )
        parts.append(
            f'<text x="{x:.1f}" y="{height - BOTTOM + 18}" text-anchor="middle">'
            f"{_duration(power)}</text>"
        )
    return parts


def _duration(power: int) -> str:
    """10 to `power` microseconds."""
    unit, shift = ("s", 6) if power >= 6 else ("ms", 3) if power >= 3 else ("µs", 0)
    return f"{10.0 ** (power - shift):g} {unit}"
