"""The main table: every workload on every server, in alternating rounds.

Rule: each round starts each server on an empty directory, drives all workloads
and stops it; the order of servers turns by one every round, so that no server
always runs on a cold or a warm machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from benchmarks import proc
from benchmarks.generator import GeneratorFailed, failed, generator
from benchmarks.servers import DidNotStart, Kind, running, scratch
from benchmarks.stats import Sample, median
from benchmarks.workloads import Workload

T = TypeVar("T")

Report = Callable[[str], None]
"""Takes one line about the progress."""


@dataclass(frozen=True, slots=True)
class Drive:
    """How servers are driven; the same for every section that drives any.

    `directory`: where fresh server directories are made (None: the system's temporary one).
    """

    generator: str
    casload: Path | None
    processes: int
    seconds: float
    rounds: int
    directory: Path | None


def compare(
    kinds: Sequence[Kind],
    workloads: Sequence[Workload],
    concurrencies: Sequence[int],
    drive: Drive,
    report: Report,
) -> dict[str, Any]:
    """The section's data: samples, and the memory that no file backs of all of a server's
    processes when its workloads were over (bytes, the median of the rounds)."""
    samples: list[Sample] = []
    kept: dict[str, list[int]] = {}
    for round_ in range(drive.rounds):
        for kind in turned(kinds, round_):
            samples += _round(kind, workloads, concurrencies, drive, round_, kept, report)
    return {
        "samples": [sample.to_json() for sample in samples],
        "memory_afterwards": {name: median(found) for name, found in kept.items()},
    }


def turned(things: Sequence[T], round_: int) -> list[T]:
    """`things` in the order of that round: each begins with the one that came second before."""
    turn = round_ % len(things)
    return [*things[turn:], *things[:turn]]


def _round(
    kind: Kind,
    workloads: Sequence[Workload],
    concurrencies: Sequence[int],
    drive: Drive,
    round_: int,
    kept: dict[str, list[int]],
    report: Report,
) -> list[Sample]:
    samples: list[Sample] = []
    plan = [(workload, concurrency) for workload in workloads for concurrency in concurrencies]
    try:
        with (
            scratch(drive.directory) as directory,
            running(kind, directory) as server,
            generator(
                drive.generator, server, casload=drive.casload, processes=drive.processes
            ) as load,
        ):
            for workload, concurrency in plan:
                sample = load.run(workload, concurrency, drive.seconds, round_)
                samples.append(sample)
                report(progress(sample, workload))
            memory = proc.total(proc.memory(server.pid).values())
            kept.setdefault(kind.name, []).append(memory.anonymous)
    except (DidNotStart, GeneratorFailed) as error:
        report(f"{kind.name}: {error}")
        problem = str(error).splitlines()[0]
        samples += [failed(kind.name, *rest, round_, problem) for rest in plan[len(samples) :]]
    return samples


def progress(sample: Sample, workload: Workload) -> str:
    figures = (
        f"{sample.cpu_us:,.1f} µs/op  {sample.rate:,.0f}/s"
        if sample.valid
        else f"{sample.errors} errors: {sample.first_error}"
    )
    return (
        f"round {sample.round + 1}  {sample.server}  {workload.label}"
        f"  {sample.concurrency} in flight  {figures}"
    )
