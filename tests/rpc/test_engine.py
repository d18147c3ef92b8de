"""Which engine serves, and stock servicers on each."""

from __future__ import annotations

import logging
import sys
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha._async import ReflectionServicer

from cas.rpc import cq, engine
from cas.rpc.handler import Context, EngineOptions
from tests.rpc.serving import PATIENCE, Server, make_engine

OPTIONS = EngineOptions(
    max_message_bytes=1 << 20, max_concurrent_calls=10, helper_threads=1, stall_timeout=60.0
)


def made(name: str) -> str:
    """The name of the engine that `name` gives."""
    chosen = engine.make_engine(name, OPTIONS)
    chosen.stop(None)
    assert chosen.wait_for_termination(PATIENCE)
    return chosen.name


def test_each_engine_by_its_name(engine_name: str, caplog: pytest.LogCaptureFixture) -> None:
    assert made(engine_name) == engine_name
    assert caplog.records == []


def test_the_installed_grpcio_can_run_cq() -> None:
    assert cq.unsupported() is None


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("ReceiveCloseOnServerOperation", "has no ReceiveCloseOnServerOperation"),
        ("CompletionQueue", "has no CompletionQueue.poll"),
    ],
)
def test_a_grpcio_that_lacks_something(
    name: str, reason: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        patch.delattr(f"cas.rpc.cq.cygrpc.{name}")
        with caplog.at_level(logging.WARNING), pytest.raises(RuntimeError, match=reason):
            cq.make_engine(OPTIONS)
        assert made("cq") == "aio"
    (record,) = caplog.records
    assert reason in vars(record)["reason"]
    assert made("cq") == "cq"


def test_a_grpcio_that_behaves_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    class Server:
        """Its constructor takes something else."""

        request_call = start = shutdown = destroy = cancel_all_calls = add_http2_port = None
        register_completion_queue = None

        def __init__(self, arguments: object) -> None:
            raise AssertionError

    monkeypatch.setattr("cas.rpc.cq.cygrpc.Server", Server)
    reason = cq.unsupported()
    assert reason is not None
    assert reason.startswith("TypeError")


def test_a_grpcio_without_the_private_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cas.rpc.cq", None)
    monkeypatch.delattr("cas.rpc.cq")
    assert made("cq") == "aio"


class Health(health_pb2_grpc.HealthServicer):
    """A servicer as grpcio-tools' generated base classes want it."""

    async def Check(  # noqa: N802 - the service's own name
        self, request: health_pb2.HealthCheckRequest, context: Any
    ) -> health_pb2.HealthCheckResponse:
        call: Context = context
        if request.service != "known":
            await call.abort(grpc.StatusCode.NOT_FOUND, f"no service {request.service!r}")
        return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)

    async def Watch(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: Any
    ) -> Any:
        for status in (health_pb2.HealthCheckResponse.SERVING, 2):
            yield health_pb2.HealthCheckResponse(status=status)


@pytest.fixture
def generated(engine_name: str) -> Any:
    """An engine with servicers that were registered by generated code."""
    serving: Any = make_engine(engine_name)
    generated: Any = health_pb2_grpc
    generated.add_HealthServicer_to_server(Health(), Registrar(serving))
    generated = reflection_pb2_grpc
    names = ["grpc.health.v1.Health", reflection.SERVICE_NAME]
    generated.add_ServerReflectionServicer_to_server(ReflectionServicer(names), Registrar(serving))
    port = serving.add_insecure_port("127.0.0.1:0")
    serving.start()
    server = Server(serving, f"127.0.0.1:{port}")
    yield server
    server.close()


class Registrar:
    """What generated code registers with; newer code registers its methods twice."""

    def __init__(self, serving: Any) -> None:
        self.add_generic_rpc_handlers = serving.add_generic_rpc_handlers

    def add_registered_method_handlers(self, service: str, handlers: object) -> None:
        pass


def test_generated_code_on_both_sides(generated: Server) -> None:
    stub: Any = health_pb2_grpc.HealthStub(generated.channel())
    response = stub.Check(health_pb2.HealthCheckRequest(service="known"))
    assert response.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as raised:
        stub.Check(health_pb2.HealthCheckRequest(service="other"))
    assert raised.value.code() == grpc.StatusCode.NOT_FOUND
    assert [each.status for each in stub.Watch(health_pb2.HealthCheckRequest())] == [1, 2]


def test_grpc_reflections_own_servicer(generated: Server) -> None:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(generated.channel())
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="grpc.health.v1.Health"),
        reflection_pb2.ServerReflectionRequest(file_by_filename="none.proto"),
    ]
    services, file, missing = stub.ServerReflectionInfo(iter(requests))
    names = [service.name for service in services.list_services_response.service]
    assert names == ["grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"]
    assert file.file_descriptor_response.file_descriptor_proto
    assert missing.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
