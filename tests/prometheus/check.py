"""promtool and a real Prometheus against a loaded server of two workers.

Checks, in this order: promtool takes the configuration and the rules; the rules pass their unit
tests; promtool finds nothing against what a loaded server's /metrics says; Prometheus, with the
configuration of deploy/, scrapes that server, has every metric family that there is, has counted
what was sent, evaluates every rule, and understands every expression of the dashboard.

Rule: what is expected comes from the load and from deploy/, never from the server's own words.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import grpc

from cas.metrics import families
from cas.pb import bytestream_pb2 as bs
from cas.pb import remote_execution_pb2 as pb
from tests.server.serving import ROOT, Server, channel, spawn

DEPLOY = ROOT / "deploy"
PATIENCE = 90.0
"""Seconds for anything to happen: Prometheus takes some to begin."""

REAPI = "/build.bazel.remote.execution.v2."
BLOBS = 30


class Wrong(Exception):
    """A check that did not hold; says which."""


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="cas-prometheus-") as scratch, ExitStack() as running:
        try:
            _promtool("check", "config", str(DEPLOY / "prometheus" / "prometheus.yml"))
            _promtool("test", "rules", str(DEPLOY / "prometheus" / "rules_test.yml"))
            server = running.enter_context(_server(Path(scratch)))
            _load(server)
            _ready(server)
            _promtool("check", "metrics", given=_get(server.http, "/metrics"))
            address = running.enter_context(_prometheus(Path(scratch), server))
            _scraped(address)
            _rules(address)
            _dashboard(address)
        except (Wrong, subprocess.TimeoutExpired) as error:
            print(f"tests/prometheus: FAILED: {error}", file=sys.stderr)
            return 1
    print("tests/prometheus: all checks hold")
    return 0


# --- the server, and what it is sent


@contextmanager
def _server(scratch: Path) -> Iterator[Server]:
    arguments = ["--dir", str(scratch / "store"), "--workers", "2"]
    server = spawn(scratch / "log", [*arguments, "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"])
    try:
        server.await_ready()
        yield server
        server.process.terminate()
        if server.ends() != 0:
            raise Wrong(f"the server ended badly: {server.log.read_text()}")
    finally:
        server.process.kill()
        server.process.wait()
        assert server.process.stdout is not None
        server.process.stdout.close()


def _load(server: Server) -> None:
    """Writes, reads, hits and misses, over gRPC and HTTP."""
    blobs = [os.urandom(100 * 3 ** (number % 8)) for number in range(BLOBS)]
    for number in range(0, BLOBS, 10):
        # A connection each: the system gives them to one worker or the other.
        with channel(server) as opened:
            for blob in blobs[number : number + 10]:
                _over_grpc(opened, blob)
    with closing(http.client.HTTPConnection(server.http, timeout=PATIENCE)) as client:
        for blob in blobs:
            client.request("GET", f"/cas/{hashlib.sha256(blob).hexdigest()}")
            answer = client.getresponse()
            if answer.read() != blob:
                raise Wrong(f"a blob came back as {answer.status}, expected its bytes")


def _over_grpc(opened: grpc.Channel, blob: bytes) -> None:
    digest = pb.Digest(hash=hashlib.sha256(blob).hexdigest(), size_bytes=len(blob))
    name = f"blobs/{digest.hash}/{digest.size_bytes}"
    write = opened.stream_unary(
        "/google.bytestream.ByteStream/Write",
        bs.WriteRequest.SerializeToString,
        bs.WriteResponse.FromString,
    )
    read = opened.unary_stream(
        "/google.bytestream.ByteStream/Read",
        bs.ReadRequest.SerializeToString,
        bs.ReadResponse.FromString,
    )
    get = opened.unary_unary(
        f"{REAPI}ActionCache/GetActionResult",
        pb.GetActionResultRequest.SerializeToString,
        pb.ActionResult.FromString,
    )
    update = opened.unary_unary(
        f"{REAPI}ActionCache/UpdateActionResult",
        pb.UpdateActionResultRequest.SerializeToString,
        pb.ActionResult.FromString,
    )
    request = bs.WriteRequest(
        resource_name=f"uploads/{uuid.uuid4()}/{name}", finish_write=True, data=blob
    )
    write(iter([request]), timeout=PATIENCE)
    list(read(bs.ReadRequest(resource_name=name), timeout=PATIENCE))
    asked = pb.GetActionResultRequest(instance_name="main", action_digest=digest)
    try:
        get(asked, timeout=PATIENCE)
    except grpc.RpcError as error:
        if error.code() != grpc.StatusCode.NOT_FOUND:
            raise
    result = pb.ActionResult(stdout_digest=digest)
    update(
        pb.UpdateActionResultRequest(
            instance_name="main", action_digest=digest, action_result=result
        ),
        timeout=PATIENCE,
    )
    get(asked, timeout=PATIENCE)


def _ready(server: Server) -> None:
    _until(lambda: _status(server.http, "/readyz") == 200, "/readyz says 200")
    if _status(server.http, "/healthz") != 200:
        raise Wrong("/healthz does not say 200")


# --- promtool


def _promtool(*arguments: str, given: bytes | None = None) -> None:
    """Runs it; what it finds, warnings included, is a failure."""
    command = ["promtool", *arguments]
    done = subprocess.run(command, input=given, capture_output=True, timeout=PATIENCE, check=False)
    said = (done.stdout + done.stderr).decode()
    if done.returncode or (given is not None and said.strip()):
        raise Wrong(f"{' '.join(command)} ended with {done.returncode}: {said}")
    print(f"{' '.join(command)}: ok")


# --- Prometheus


@contextmanager
def _prometheus(scratch: Path, server: Server) -> Iterator[str]:
    """A Prometheus with the configuration of deploy/, but for the target and the pace."""
    config = (DEPLOY / "prometheus" / "prometheus.yml").read_text()
    changed = config.replace("127.0.0.1:8080", server.http).replace("15s", "1s")
    if config.count("127.0.0.1:8080") != 1 or config.count("15s") != 2:
        raise Wrong("deploy/prometheus/prometheus.yml is not as this check expects it")
    (scratch / "prometheus.yml").write_text(changed)
    (scratch / "rules.yml").write_text((DEPLOY / "prometheus" / "rules.yml").read_text())
    log = scratch / "prometheus.log"
    address = f"127.0.0.1:{_free_port()}"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={scratch / 'prometheus.yml'}",
                f"--storage.tsdb.path={scratch / 'tsdb'}",
                f"--web.listen-address={address}",
            ],
            stdout=out,
            stderr=out,
        )
    try:
        _until(lambda: _status(address, "/-/ready") == 200, "Prometheus is ready", log)
        yield address
    finally:
        process.kill()
        process.wait()


def _scraped(address: str) -> None:
    _until(lambda: _value(address, 'up{job="cas"}') == 1, "the target is up")
    # Counters of the load, which is over, by whichever process of the server counted.
    expected = {
        'cas_requests_total{method="ByteStream/Write", code="OK"}': BLOBS,
        'cas_requests_total{method="ByteStream/Read", code="OK"}': BLOBS,
        'cas_requests_total{method="ActionCache/GetActionResult", code="OK"}': BLOBS,
        'cas_requests_total{method="ActionCache/GetActionResult", code="NOT_FOUND"}': BLOBS,
        'cas_requests_total{method="ActionCache/UpdateActionResult", instance_name="main"}': BLOBS,
        f'sum(cas_requests_total{{protocol="http", code="200"}}) >= bool {BLOBS}': 1,
        'cas_action_cache_lookups_total{result="hit"}': BLOBS,
        'cas_action_cache_lookups_total{result="miss"}': BLOBS,
        "cas_blob_written_bytes_count": BLOBS,
        "cas_blob_read_bytes_count": 2 * BLOBS,
        "cas_ready": 1,
        'cas_workers{role="grpc"}': 2,
    }
    for expression, count in expected.items():
        found = _value(address, f"sum({expression})")
        if found != count:
            raise Wrong(f"{expression} is {found}, expected {count}")
    print(f"Prometheus has counted the load: {len(expected)} numbers as expected")
    metadata = _api(address, "/api/v1/metadata")
    for family in families.ALL:
        kinds = [entry["type"] for entry in metadata.get(family.name, [])]
        if kinds != [family.kind]:
            raise Wrong(f"{family.name} is {kinds} to Prometheus, expected {family.kind}")
    print(f"Prometheus knows all {len(families.ALL)} metric families")


def _rules(address: str) -> None:
    def evaluated() -> bool:
        rules = [
            rule for group in _api(address, "/api/v1/rules")["groups"] for rule in group["rules"]
        ]
        bad = [rule for rule in rules if rule["health"] == "err"]
        if bad:
            raise Wrong(f"rules that cannot be evaluated: {bad}")
        firing = [rule["name"] for rule in rules if rule.get("state") == "firing"]
        if firing:
            raise Wrong(f"alerts on a healthy server: {firing}")
        return len(rules) > 0 and all(rule["health"] == "ok" for rule in rules)

    _until(evaluated, "every rule was evaluated")
    print("Prometheus evaluates all rules, and no alert fires")


def _dashboard(address: str) -> None:
    board = json.loads((DEPLOY / "grafana" / "cas.json").read_text())
    count = 0
    for panel in board["panels"]:
        for target in panel.get("targets", ()):
            expression = target["expr"].replace("$__rate_interval", "1m")
            expression = expression.replace("$job", ".+").replace("$server", ".+")
            _api(address, "/api/v1/query", query=expression)
            count += 1
    print(f"Prometheus understands all {count} expressions of the dashboard")


# --- asking


def _get(address: str, path: str) -> bytes:
    with closing(http.client.HTTPConnection(address, timeout=PATIENCE)) as client:
        client.request("GET", path)
        answer = client.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise Wrong(f"{path} of {address} says {answer.status}: {body[:300]!r}")
        return body


def _status(address: str, path: str) -> int:
    """0 where nobody listens yet."""
    try:
        with closing(http.client.HTTPConnection(address, timeout=PATIENCE)) as client:
            client.request("GET", path)
            return client.getresponse().status
    except ConnectionError:
        return 0


def _api(address: str, path: str, **parameters: str) -> Any:
    query = f"{path}?{urllib.parse.urlencode(parameters)}" if parameters else path
    return json.loads(_get(address, query))["data"]


def _value(address: str, expression: str) -> float | None:
    result = _api(address, "/api/v1/query", query=expression)["result"]
    return float(result[0]["value"][1]) if result else None


def _until(condition: Callable[[], bool], what: str, log: Path | None = None) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise Wrong(f"did not happen: {what}; {log.read_text() if log else ''}")
        time.sleep(0.2)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
