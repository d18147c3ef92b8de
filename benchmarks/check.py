"""Whether two generators see the same server: the Python and the Go one, in turn.

Rule: one server process for all runs of a workload; the server's CPU time for one
operation should agree within noise, throughput and latency need not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.compare import Drive, Report, progress
from benchmarks.generator import generator
from benchmarks.servers import Kind, running, scratch
from benchmarks.stats import Sample
from benchmarks.workloads import Workload

GENERATORS = ("python", "casload")


def check(
    kind: Kind, workloads: Sequence[Workload], concurrency: int, drive: Drive, report: Report
) -> dict[str, Any]:
    """Samples by generator."""
    samples: dict[str, list[Sample]] = {name: [] for name in GENERATORS}
    with scratch(drive.directory) as directory, running(kind, directory) as server:
        for round_ in range(drive.rounds):
            for workload in workloads:
                for name in GENERATORS:
                    with generator(
                        name, server, casload=drive.casload, processes=drive.processes
                    ) as load:
                        sample = load.run(workload, concurrency, drive.seconds, round_)
                    samples[name].append(sample)
                    report(f"{name}  {progress(sample, workload)}")
    return {
        "server": kind.name,
        "samples": {name: [s.to_json() for s in found] for name, found in samples.items()},
    }
