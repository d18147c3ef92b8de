"""`cas serve` as its operator meets it: real processes, real signals."""

from __future__ import annotations

import json
import os
import queue
import signal
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from cas.rpc import environment
from tests.server.serving import PATIENCE, Server, Start, channel, environ_of, gone, until

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def check(opened: grpc.Channel, service: str = "") -> int:
    call = opened.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    request = health_pb2.HealthCheckRequest(service=service)
    return call(request, timeout=PATIENCE, wait_for_ready=True).status


def health(server: Server) -> int:
    with channel(server) as opened:
        return check(opened)


class Conversation:
    """One open call, which the server has begun to answer: server reflection's, whose
    client says when it is over."""

    def __init__(self, opened: grpc.Channel) -> None:
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        call = opened.stream_stream(
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )
        self._call = call(iter(self._requests.get, None), timeout=PATIENCE)
        self.names = self.ask()

    def ask(self) -> set[str]:
        """The names of the services."""
        self._requests.put(reflection_pb2.ServerReflectionRequest(list_services=""))
        return {s.name for s in next(self._call).list_services_response.service}

    def end(self) -> grpc.StatusCode:
        """Half-closes; how the call ended."""
        self._requests.put(None)
        code: grpc.StatusCode = self._call.code()
        return code


@pytest.mark.parametrize("engine", ["cq", "aio"])
def test_it_says_when_it_serves_and_sigterm_ends_it_well(start: Start, engine: str) -> None:
    server = start("--workers", "2", "--engine", engine)
    assert server.ready == f"ready grpc={server.address} http=none\n"
    assert server.address.startswith("127.0.0.1:")
    assert not server.address.endswith(":0")
    assert health(server) == SERVING
    workers = server.workers()
    processes = [*workers, server.janitor()]
    assert len(set(processes)) == 3
    assert not any(gone(pid) for pid in processes)

    server.process.terminate()
    assert server.ends() == 0
    assert all(gone(pid) for pid in processes)
    assert server.process.stdout is not None
    assert server.process.stdout.read() == ""
    assert [e["signal"] for e in server.events("draining")] == ["SIGTERM"]
    assert server.events("stopped")


def test_sigint_is_as_good_and_the_directory_serves_again(start: Start) -> None:
    server = start()
    server.process.send_signal(signal.SIGINT)
    assert server.ends() == 0
    assert health(start()) == SERVING


def test_reflection_lists_the_services(start: Start) -> None:
    with channel(start()) as opened:
        talk = Conversation(opened)
        assert {"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"} <= talk.names
        assert talk.end() == grpc.StatusCode.OK


def test_health_knows_its_services(start: Start) -> None:
    with channel(start()) as opened:
        assert check(opened, "grpc.health.v1.Health") == SERVING
        with pytest.raises(grpc.RpcError) as caught:
            check(opened, "no.Such")
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND
        assert "no.Such" in str(caught.value.details())


@pytest.mark.parametrize("engine", ["cq", "aio"])
def test_a_running_call_may_finish_in_the_drain(start: Start, engine: str) -> None:
    server = start("--engine", engine)
    with channel(server) as opened:
        talk = Conversation(opened)
        server.process.terminate()
        until(lambda: bool(server.events("draining")), "the drain")
        assert talk.ask() == talk.names
        assert talk.end() == grpc.StatusCode.OK
    assert server.ends() == 0


@pytest.mark.parametrize("engine", ["cq", "aio"])
def test_a_call_that_does_not_finish_is_cut_off_at_the_drain_timeout(
    start: Start, engine: str
) -> None:
    server = start("--drain-timeout", "0.5", "--engine", engine)
    with channel(server) as opened:
        talk = Conversation(opened)
        server.process.terminate()
        assert server.ends() == 0
        assert talk.end() != grpc.StatusCode.OK


@pytest.mark.parametrize("engine", ["cq", "aio"])
def test_a_watch_hears_of_the_drain_and_does_not_hold_it_up(start: Start, engine: str) -> None:
    server = start("--drain-timeout", "3600", "--engine", engine)
    with channel(server) as opened:
        call = opened.unary_stream(
            "/grpc.health.v1.Health/Watch",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        watch = call(health_pb2.HealthCheckRequest(), timeout=PATIENCE)
        assert next(watch).status == SERVING
        server.process.terminate()
        assert next(watch).status == NOT_SERVING
        assert watch.code() == grpc.StatusCode.UNAVAILABLE
    assert server.ends() == 0


def test_a_second_signal_ends_it_at_once(start: Start) -> None:
    server = start("--drain-timeout", "3600")
    (worker,) = server.workers()
    with channel(server) as opened:
        talk = Conversation(opened)
        server.process.terminate()
        until(lambda: bool(server.events("draining")), "the drain")
        time.sleep(0.5)
        server.process.terminate()
        assert server.ends() == 128 + signal.SIGTERM
        assert talk.end() != grpc.StatusCode.OK
    assert gone(worker)


def test_one_signal_sent_twice_is_one(start: Start) -> None:
    server = start()
    server.process.terminate()
    server.process.terminate()
    assert server.ends() == 0


def test_a_signal_before_it_serves_ends_it_too(start: Start, tmp_path: Path) -> None:
    server = start(wait=False)
    until((tmp_path / "store/format").exists, "the start")
    server.process.terminate()
    assert server.ends() == 0


def test_a_second_start_is_refused(start: Start, tmp_path: Path) -> None:
    first = start()
    second = start(wait=False)
    assert second.ends() == 1
    (line,) = second.log.read_text().splitlines()
    assert line.startswith(f"cas: {tmp_path / 'store'} is in use by another server")
    assert f"pid {first.process.pid}" in line
    assert health(first) == SERVING


def test_a_served_port_is_refused(start: Start, tmp_path: Path) -> None:
    first = start()
    second = start("--dir", str(tmp_path / "other"), "--grpc", first.address, wait=False)
    assert second.ends() == 1
    (line,) = second.log.read_text().splitlines()
    assert line == f"cas: cannot serve on {first.address}: it is in use by another process"
    assert health(first) == SERVING


def test_a_directory_of_another_format_is_refused(start: Start, tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    (store / "format").write_text("cas 999\n")
    server = start(wait=False)
    assert server.ends() == 1
    (line,) = server.log.read_text().splitlines()
    assert line.startswith(f"cas: {store} holds format 'cas 999', this release reads 'cas 1'")
    assert [path.name for path in store.iterdir()] == ["format"]


def test_what_keeps_workers_from_starting_is_said_in_one_line(start: Start, tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/absent/cas.sock"
    server = start("--grpc", address, wait=False)
    assert server.ends() == 1
    (line,) = server.log.read_text().splitlines()
    assert line.startswith("cas: ")
    assert address in line


def test_a_killed_worker_is_replaced(start: Start) -> None:
    server = start("--workers", "2")
    victim, other = server.workers()
    server.kill(victim)
    until(lambda: bool(server.again()), "another worker")

    def died() -> list[tuple[int, str]]:
        events = server.events("worker died; it is started again")
        return [(event["worker_pid"], event["ended"]) for event in events]

    assert died() == [(victim, "SIGKILL")]
    assert not gone(other)

    # While the other is being replaced, the new one is the only one to ask.
    server.kill(other)
    assert health(server) == SERVING
    # A death that is noticed only while draining would be a worker that ended badly.
    until(lambda: len(died()) == 2, "the notice of the other's death")
    server.process.terminate()
    assert server.ends() == 0


def test_a_worker_that_does_not_answer_is_replaced(start: Start) -> None:
    server = start("--heartbeat-timeout", "3")
    (victim,) = server.workers()
    os.kill(victim, signal.SIGSTOP)
    until(lambda: bool(server.again()), "another worker")
    assert gone(victim)
    assert server.events("worker does not answer; it is killed")
    assert health(server) == SERVING
    server.process.terminate()
    assert server.ends() == 0


def test_a_worker_told_to_stop_is_replaced(start: Start) -> None:
    server = start()
    (worker,) = server.workers()
    os.kill(worker, signal.SIGTERM)
    until(lambda: bool(server.again()), "another worker")
    (ended,) = server.events("worker ended; it is started again")
    assert ended["ended"] == "exit code 0"
    assert health(server) == SERVING


def test_a_killed_janitor_is_replaced_and_ends_last(start: Start) -> None:
    server = start()
    server.kill(server.janitor())
    until(lambda: bool(server.again()), "another janitor")
    (died,) = server.events("worker died; it is started again")
    assert (died["role"], died["ended"]) == ("janitor", "SIGKILL")
    (janitor,) = server.again()
    with channel(server) as opened:
        talk = Conversation(opened)
        server.process.terminate()
        until(lambda: bool(server.events("draining")), "the drain")
        assert talk.ask() == talk.names
        assert not gone(janitor)
        assert talk.end() == grpc.StatusCode.OK
    assert server.ends() == 0
    assert gone(janitor)


def test_workers_do_not_outlive_a_killed_supervisor(start: Start) -> None:
    server = start("--workers", "2")
    workers = [*server.workers(), server.janitor()]
    server.process.kill()
    until(lambda: all(gone(pid) for pid in workers), "the end of the workers")
    # Neither the directory nor the port is held any longer.
    assert health(start("--grpc", server.address)) == SERVING


def test_a_unix_socket_is_served_by_one_worker_and_removed(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "cas.sock"
    server = start("--grpc", f"unix:{path}", "--workers", "4")
    assert server.ready == f"ready grpc=unix:{path} http=none\n"
    assert health(server) == SERVING
    assert len(server.workers()) == 1
    (warning,) = server.events("a Unix socket has one listener: one worker serves it")
    assert warning["asked"] == 4
    server.process.terminate()
    assert server.ends() == 0
    assert not path.exists()


def test_where_the_engine_cannot_run_the_public_one_does(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A grpcio whose private parts are others, as far as the server can tell.
    (tmp_path / "sitecustomize.py").write_text(
        "from grpc._cython import cygrpc\ndel cygrpc.CompletionQueue\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    server = start("--engine", "cq", "--workers", "2")
    assert health(server) == SERVING
    warnings = server.events("the cq engine cannot run, using aio")
    assert warnings
    assert all("CompletionQueue" in warning["reason"] for warning in warnings)


def test_workers_get_what_the_engine_wants_unless_the_operator_says_otherwise(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    def environ(server: Server) -> dict[str, str]:
        (worker,) = server.workers()
        return environ_of(worker)

    for name in ("GRPC_EXPERIMENTS", "GRPC_VERBOSITY"):
        monkeypatch.delenv(name, raising=False)
    server = start()
    assert environ(server).items() >= environment.variables().items()
    assert environ(server)["GRPC_VERBOSITY"] == "NONE"
    server.process.terminate()
    assert server.ends() == 0

    monkeypatch.setenv("GRPC_EXPERIMENTS", "")
    monkeypatch.setenv("GRPC_VERBOSITY", "ERROR")
    server = start()
    assert environ(server)["GRPC_EXPERIMENTS"] == ""
    assert environ(server)["GRPC_VERBOSITY"] == "ERROR"


def test_the_log_is_one_json_object_a_line(start: Start) -> None:
    server = start("--log-level", "debug")
    server.process.terminate()
    assert server.ends() == 0
    for line in server.log.read_text().splitlines():
        assert {"time", "level", "event", "logger", "pid"} <= json.loads(line).keys()
