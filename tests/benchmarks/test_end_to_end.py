"""Our server measured for moments: every workload's answers are right, every section comes out.

No figure is asserted, only that there is one and that nothing failed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from benchmarks import cli, servers
from benchmarks.generator import PythonLoad
from benchmarks.servers import Kind, Running
from benchmarks.stats import Sample, rows
from benchmarks.workloads import parse

# The default workloads' kinds, with blobs small enough for a test.
WORKLOADS = (
    *("caps", "read:1024", "getac", "updateac", "write:1024", "fmb:1000"),
    *("batchupdate:20x1024", "batchread:20x1024", "read:300000", "write:300000/16"),
)

pytestmark = pytest.mark.timeout(180)


def run(tmp_path: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    """The command's exit code and the sections that it wrote."""
    path = tmp_path / "results.json"
    code = cli.main(
        [
            *("--rounds", "1", "--seconds", "0.2", "--processes", "1", "--peers", "none"),
            *("--json", str(path), "--directory", str(tmp_path), *arguments),
        ],
        {},
    )
    return code, json.loads(path.read_text())["sections"]


def test_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    markdown = tmp_path / "RESULTS.md"
    code, sections = run(
        tmp_path,
        *("--workloads", ",".join(WORKLOADS), "--concurrency", "4"),
        *("--markdown", str(markdown)),
    )
    samples = [Sample(**sample) for sample in sections["table"]["data"]["samples"]]
    assert {sample.workload: sample.problem for sample in samples} == dict.fromkeys(WORKLOADS, "")
    assert code == 0
    assert all(sample.operations > 0 and sample.seconds >= 0.1 for sample in samples)
    for row in rows(samples):
        assert parse(row.workload).label in markdown.read_text()
    assert "FindMissing, 1,000 digests" in capsys.readouterr().out


def test_the_other_sections(tmp_path: Path) -> None:
    code, sections = run(
        tmp_path,
        *("--sections", "scale,idle,large", "--entries", "3000"),
        *("--idle-seconds", "0.2", "--large-size", "5000001"),
    )
    assert code == 0
    (size,) = sections["scale"]["data"]["sizes"]
    assert (size["entries"], size["problem"]) == (3000, "")
    assert size["index_bytes"] > 3000 * 64
    assert sections["idle"]["data"]["servers"]["cas"]["anonymous"] > 0
    large = sections["large"]["data"]["servers"]["cas"]
    assert "problem" not in large
    assert large["write"]["peak_resident"] > 0
    assert large["read"]["peak_resident"] > 0


def test_a_server_that_does_not_start_makes_its_cells_invalid(tmp_path: Path) -> None:
    code, sections = run(tmp_path, "--workloads", "caps", "--serve-args=--no-such-option")
    (sample,) = sections["table"]["data"]["samples"]
    assert code == 1
    assert sample["errors"] == 1
    assert sample["first_error"]


@contextmanager
def answering(answers: dict[str, bytes], tmp_path: Path) -> Iterator[Running]:
    """A gRPC server that answers each method always with the same bytes; other methods are
    UNIMPLEMENTED."""

    class Handler(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> Any:
            method = str(details.method).rpartition("/")[2]
            if method not in answers:
                return None
            if method == "Write":
                return grpc.stream_unary_rpc_method_handler(
                    lambda requests, _context: [*requests] and answers[method]
                )
            if method == "Read":
                return grpc.unary_stream_rpc_method_handler(
                    lambda _request, _context: iter([answers[method]])
                )
            return grpc.unary_unary_rpc_method_handler(lambda _request, _context: answers[method])

    server = grpc.server(futures.ThreadPoolExecutor(4), handlers=[Handler()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        # A process that there is, as its CPU time is asked for.
        with servers.running(_sleeper(), tmp_path / "other") as other:
            yield replace(other, address=f"127.0.0.1:{port}")
    finally:
        server.stop(None).wait()


def _sleeper() -> Kind:
    import sys

    program = "import time; print('ready grpc=x http=none', flush=True); time.sleep(100)"
    return Kind("wrong", lambda *_: [sys.executable, "-c", program], "1", announces=True)


WRITTEN = b"\x08\x80\x08"
"""A WriteResponse with committed_size 1024."""
WRITTEN_64 = b"\x08\x40"


@pytest.mark.parametrize(
    ("workload", "answers", "problem"),
    [
        ("caps", {}, "UNIMPLEMENTED"),
        ("caps", {"GetCapabilities": b""}, "no digest function"),
        ("write:1024", {"Write": b"\x08\x01"}, "committed_size 1 after a whole blob"),
        ("write:1024", {"Write": WRITTEN, "Read": b"\x52\x03abc"}, "read back otherwise"),
        ("read:1024", {"Write": WRITTEN, "Read": b"\x52\x03abc"}, "read back otherwise"),
        ("fmb:1000", {"Write": WRITTEN_64, "FindMissingBlobs": b""}, "0 digests said to be"),
        ("batchupdate:3x10", {"BatchUpdateBlobs": b""}, "0 responses to 3 blobs"),
        ("batchread:3x1024", {"Write": WRITTEN, "BatchReadBlobs": b""}, "0 responses to 3"),
        (
            "getac",
            {"Write": b"\x08\x80\x02", "UpdateActionResult": b"", "GetActionResult": b""},
            "another action result",
        ),
    ],
)
def test_a_server_that_answers_wrongly_wins_nothing(
    workload: str, answers: dict[str, bytes], problem: str, tmp_path: Path
) -> None:
    with answering(answers, tmp_path) as server:
        load = PythonLoad(server, 1)
        try:
            sample = load.run(parse(workload), 2, 0.1)
        finally:
            load.close()
    assert not sample.valid
    assert problem in sample.problem
