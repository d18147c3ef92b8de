"""Figures: samples of runs, their medians, and the ratio to the best peer.

Rule: pure; no clocks, no files.  A sample with errors, or one that completed
nothing, is invalid: it never takes part in a median or a ratio, and what remains
of its row says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

OURS: Final = "cas"
"""Servers of this name, or of this name and a variant (``cas-w2``), are ours."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One workload driven once against one server.

    `cpu_seconds` is what the server's processes used meanwhile; p50 and p99 are
    milliseconds of one operation as its client saw it.
    """

    server: str
    workload: str
    concurrency: int
    round: int
    operations: int
    seconds: float
    cpu_seconds: float
    p50_ms: float
    p99_ms: float
    errors: int = 0
    first_error: str = ""

    @property
    def valid(self) -> bool:
        return self.errors == 0 and self.operations > 0

    @property
    def problem(self) -> str:
        """Why the sample is invalid; empty where it is valid."""
        if self.errors:
            return f"{self.errors} errors: {self.first_error}"
        return "" if self.operations else "no operation completed"

    @property
    def cpu_us(self) -> float:
        """Server CPU microseconds for one operation."""
        return self.cpu_seconds * 1e6 / self.operations if self.operations else float("nan")

    @property
    def rate(self) -> float:
        """Operations completed in a second."""
        return self.operations / self.seconds if self.seconds else float("nan")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Cell:
    """One server's median of one row; `problem` is empty where every round was valid."""

    cpu_us: float
    rate: float
    p50_ms: float
    p99_ms: float
    rounds: int
    problem: str = ""

    @property
    def valid(self) -> bool:
        return not self.problem


@dataclass(frozen=True, slots=True)
class Row:
    """One workload at one concurrency: a cell for each server that was driven."""

    workload: str
    concurrency: int
    cells: dict[str, Cell]

    def best_peer(self) -> str | None:
        """The valid peer that used the least CPU; None without one."""
        peers = [name for name, cell in self.cells.items() if not is_ours(name) and cell.valid]
        return min(peers, key=lambda name: self.cells[name].cpu_us, default=None)

    def ratio(self, server: str = OURS) -> float | None:
        """`server`'s CPU for one operation ÷ the best peer's; None where either is missing."""
        best = self.best_peer()
        own = self.cells.get(server)
        if best is None or own is None or not own.valid or self.cells[best].cpu_us <= 0:
            return None
        return own.cpu_us / self.cells[best].cpu_us


def is_ours(server: str) -> bool:
    return server == OURS or server.startswith(OURS + "-")


def quantile(ordered: Sequence[float], share: float) -> float:
    """The value at `share` (0 to 1) of an ascending sequence, between neighbours in proportion;
    nan for an empty one."""
    if not ordered:
        return float("nan")
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def median(values: Iterable[float]) -> float:
    return quantile(sorted(values), 0.5)


def cell(samples: Sequence[Sample]) -> Cell:
    """The median of one server's rounds of one row.

    One round with errors spoils the cell: what failed is likely to have been cheap.
    """
    problem = next((sample.problem for sample in samples if not sample.valid), "")
    usable = [sample for sample in samples if sample.valid]
    return Cell(
        cpu_us=median(sample.cpu_us for sample in usable),
        rate=median(sample.rate for sample in usable),
        p50_ms=median(sample.p50_ms for sample in usable),
        p99_ms=median(sample.p99_ms for sample in usable),
        rounds=len(usable),
        problem=problem,
    )


def rows(samples: Iterable[Sample]) -> list[Row]:
    """Samples grouped by workload and concurrency, in the order of first appearance."""
    groups: dict[tuple[str, int], dict[str, list[Sample]]] = {}
    for sample in samples:
        servers = groups.setdefault((sample.workload, sample.concurrency), {})
        servers.setdefault(sample.server, []).append(sample)
    return [
        Row(workload, concurrency, {server: cell(found) for server, found in servers.items()})
        for (workload, concurrency), servers in groups.items()
    ]
