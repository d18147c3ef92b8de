"""What clients asked for and found, as `cas stat` tells it afterwards."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

from cas.pb import remote_execution_pb2 as pb
from tests.server.serving import PATIENCE, Start, channel


def test_hits_and_misses_outlive_the_server(start: Start, tmp_path: Path) -> None:
    server = start("--dir", str(tmp_path / "store"))
    with channel(server) as opened:
        ask = opened.unary_unary(
            "/build.bazel.remote.execution.v2.ActionCache/GetActionResult",
            request_serializer=pb.GetActionResultRequest.SerializeToString,
            response_deserializer=pb.ActionResult.FromString,
        )
        keep = opened.unary_unary(
            "/build.bazel.remote.execution.v2.ActionCache/UpdateActionResult",
            request_serializer=pb.UpdateActionResultRequest.SerializeToString,
            response_deserializer=pb.ActionResult.FromString,
        )
        digest = pb.Digest(hash="ab" * 32, size_bytes=3)
        kept = pb.ActionResult(exit_code=1)
        request = pb.GetActionResultRequest(action_digest=digest)
        with pytest.raises(grpc.RpcError) as missed:
            ask(request, timeout=PATIENCE)
        assert missed.value.code() is grpc.StatusCode.NOT_FOUND
        keep(
            pb.UpdateActionResultRequest(action_digest=digest, action_result=kept),
            timeout=PATIENCE,
        )
        for _ in range(3):
            assert ask(request, timeout=PATIENCE) == kept
    server.process.terminate()
    assert server.ends() == 0
    command = [sys.executable, "-m", "cas", "stat", "--dir", str(tmp_path / "store")]
    told = json.loads(subprocess.check_output([*command, "--json"], timeout=PATIENCE))
    assert told["lookups"]["action_hits"] == 3
    assert told["lookups"]["action_misses"] == 1
    shown = subprocess.check_output(command, timeout=PATIENCE, text=True)
    assert "75.0% of 4 asked for since" in shown
