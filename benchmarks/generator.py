"""Generators: what drives a server, and how a run of theirs becomes a `Sample`.

Rule: the clock and the server's CPU time are read here, around the timed part of a
run only; preparing a workload (uploads, checks) is never counted.  A generator that
hangs is killed: a run has a time limit of its own.

Two kinds: `PythonLoad`, this package's own processes, and `Casload`, a program in
Go that costs less for each operation.  A client that is slow lets the server rest
between requests: each wake-up of the server then brings fewer of them, and each
costs it more.  Figures from two generators are therefore not to be mixed.
"""

from __future__ import annotations

import json
import os
import re
import selectors
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from benchmarks import proc
from benchmarks.servers import Running
from benchmarks.stats import Sample, quantile
from benchmarks.workloads import Workload

PREPARE_SECONDS = 300.0
SPARE_SECONDS = 120.0
"""Beyond the time that a run was asked for: its last operations may be long ones."""

KEYS = 2000
CONNECTIONS = 4


class GeneratorFailed(Exception):
    """The generator, not the server, could not do its part."""


class Generator(Protocol):
    """Drives one server; used as one workload after the other."""

    def run(
        self, workload: Workload, concurrency: int, seconds: float, round_: int = 0
    ) -> Sample: ...


class _Process:
    """One `benchmarks.load` process and its dialogue."""

    def __init__(self, address: str, connections: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.load", address, str(connections)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parent.parent,
            env={**os.environ, "GRPC_VERBOSITY": "NONE"},
        )
        self._buffer = b""

    def tell(self, order: dict[str, Any] | str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()

    def hear(self, timeout: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        until = time.monotonic() + timeout
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                if not selector.select(max(0.0, until - time.monotonic())):
                    raise GeneratorFailed(f"no answer within {timeout:.0f} s")
                piece = os.read(self._process.stdout.fileno(), 1 << 20)
                if not piece:
                    raise GeneratorFailed("the load generator ended; its message is above")
                self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer = json.loads(line)
        assert isinstance(answer, dict)
        return answer

    def end(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.close()
            self._process.wait(5)
        except (OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


class PythonLoad:
    """This package's generator: `processes` of them share the operations in flight."""

    def __init__(self, server: Running, processes: int, population: int = 0) -> None:
        self._server = server
        self._population = population
        each = max(1, CONNECTIONS // processes)
        self._processes = [_Process(server.address, each) for _ in range(processes)]

    def run(self, workload: Workload, concurrency: int, seconds: float, round_: int = 0) -> Sample:
        working = self._processes[:concurrency]
        order = {
            "workload": workload.name,
            "instance": "",
            "keys": max(2, KEYS // len(working)),
            "processes": len(working),
            "seconds": seconds,
            "population": self._population,
        }
        for number, process in enumerate(working):
            slots = len(range(number, concurrency, len(working)))
            process.tell({**order, "slots": slots})
        answers = [process.hear(PREPARE_SECONDS) for process in working]
        problem = next((answer["failed"] for answer in answers if "failed" in answer), None)
        if problem is not None:
            for process, answer in zip(working, answers, strict=True):
                if "failed" not in answer:
                    self._skip(process)
            return self._failed(workload, concurrency, round_, str(problem))
        before = proc.cpu_seconds(self._server.pid)
        for process in working:
            process.tell("go")
        for process in working:
            process.hear(seconds + SPARE_SECONDS)
        used = proc.cpu_seconds(self._server.pid) - before
        figures = [process.hear(SPARE_SECONDS) for process in working]
        latencies = sorted(us for figure in figures for us in figure["latencies_us"])
        return Sample(
            server=self._server.kind.name,
            workload=workload.name,
            concurrency=concurrency,
            round=round_,
            operations=len(latencies),
            seconds=max(figure["seconds"] for figure in figures),
            cpu_seconds=used,
            p50_ms=quantile(latencies, 0.5) / 1000,
            p99_ms=quantile(latencies, 0.99) / 1000,
            errors=sum(figure["errors"] for figure in figures),
            first_error=next((f["first_error"] for f in figures if f["first_error"]), ""),
        )

    def _skip(self, process: _Process) -> None:
        """Lets a process that is prepared run for nothing: another one could not prepare."""
        process.tell("go")
        process.hear(SPARE_SECONDS)
        process.hear(SPARE_SECONDS)

    def _failed(self, workload: Workload, concurrency: int, round_: int, problem: str) -> Sample:
        return failed(self._server.kind.name, workload, concurrency, round_, problem)

    def close(self) -> None:
        for process in self._processes:
            process.end()


def failed(server: str, workload: Workload, concurrency: int, round_: int, problem: str) -> Sample:
    """The sample of a run that never began."""
    nan = float("nan")
    return Sample(server, workload.name, concurrency, round_, 0, 0.0, 0.0, nan, nan, 1, problem)


class Casload:
    """The Go program casload: one process for each run, the server's CPU as it reads it."""

    def __init__(self, binary: Path, server: Running) -> None:
        self._binary = binary
        self._server = server

    def run(self, workload: Workload, concurrency: int, seconds: float, round_: int = 0) -> Sample:
        kind = self._server.kind.name
        command = [
            *(str(self._binary), "-name", kind, "-addr", self._server.address),
            *("-pid", str(self._server.pid), "-w", workload.name, "-d", f"{seconds}s"),
            *("-c", str(concurrency), "-conns", str(CONNECTIONS), "-keys", str(KEYS)),
        ]
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=PREPARE_SECONDS + seconds + SPARE_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return failed(kind, workload, concurrency, round_, "casload did not end in time")
        output = done.stdout + done.stderr
        return parse_casload(output, kind, workload, concurrency, round_, seconds)


_CASLOAD_LINE = re.compile(
    r"(?P<rate>[\d.]+) op/s.*?p50 +(?P<p50>[\d.]+) ms +p99 +(?P<p99>[\d.]+) ms"
    r" +server cpu +(?P<cpu>-?[\d.]+) us/op(?: +ERRORS (?P<errors>\d+): (?P<error>.*))?"
)


def parse_casload(
    output: str,
    server: str,
    workload: Workload,
    concurrency: int,
    round_: int,
    seconds: float,
) -> Sample:
    """The sample in casload's one line; a failed one when there is none."""
    match = _CASLOAD_LINE.search(output)
    if match is None:
        problem = " ".join(output.split())[:300] or "casload printed nothing"
        return failed(server, workload, concurrency, round_, problem)
    # It prints a rate over its own elapsed time: the count is exact only to rounding.
    operations = max(1, round(float(match["rate"]) * seconds))
    return Sample(
        server=server,
        workload=workload.name,
        concurrency=concurrency,
        round=round_,
        operations=operations,
        seconds=operations / float(match["rate"]) if float(match["rate"]) else seconds,
        cpu_seconds=float(match["cpu"]) * operations / 1e6,
        p50_ms=float(match["p50"]),
        p99_ms=float(match["p99"]),
        errors=int(match["errors"] or 0),
        first_error=match["error"] or "",
    )


@contextmanager
def generator(
    name: str, server: Running, *, casload: Path | None, processes: int
) -> Iterator[Generator]:
    """The generator called `name` (``python`` or ``casload``) on one server."""
    if name == "casload":
        if casload is None:
            raise GeneratorFailed("--generator casload needs CASLOAD=/path/to/casload")
        yield Casload(casload, server)
        return
    own = PythonLoad(server, processes)
    try:
        yield own
    finally:
        own.close()
