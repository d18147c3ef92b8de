"""One worker process of role grpc: the composition root.

Rule: the only place that knows which store, servicers and engine are put together; `serve`
reads from start to drain, top to bottom.  Started by `cas.server.supervisor` only, which
hands over the task on stdin and hears of the worker over the pipe named in its argument.
"""

from __future__ import annotations

import contextlib
import sys
import time

from cas.api import admin, caller, service
from cas.api.gate import Gate
from cas.api.limits import Limits
from cas.api.round import Circle
from cas.config import Config
from cas.metrics.board import Board
from cas.metrics.instruments import Metrics
from cas.metrics.readiness import Watch
from cas.metrics.tools import Tools
from cas.reapi.chunks import Chunks
from cas.reapi.origin import OriginOptions, Origins
from cas.rpc.engine import make_engine
from cas.rpc.handler import EOF, Engine, EngineOptions
from cas.server import access, health, process, reflection, tls
from cas.server.link import Link
from cas.server.messages import BEAT, READY, Event, Task
from cas.server.process import BEAT_INTERVAL
from cas.server.stores import nodes_of, open_for_serving, open_tiered


def serve(task: Task, link: Link, metrics: Metrics) -> None:
    """Start, serve, drain."""
    config = task.config
    with contextlib.ExitStack() as opened:
        local = open_for_serving(config, metrics)
        opened.callback(local.close)
        nodes = nodes_of(config, task.node)
        store = open_tiered(local, config, metrics, nodes)
        if store is not local:
            opened.callback(store.close)
        engine = _engine(config, metrics)
        allowed = access.open_access(config, task.addresses)
        gate = None
        if allowed is not None:
            opened.callback(allowed.close)
            gate = Gate(allowed, engine.runtime)
        origins = None
        if config.fetch_hosts:
            origins = Origins(store, _origin_options(config))
            opened.callback(origins.close)
        chunks = None
        if config.chunk_size:
            chunks = Chunks(store, config.chunk_size, metrics)
            opened.callback(chunks.close)
        checks = health.Health(engine.runtime)
        names = [*service.SERVICES, admin.SERVICE, health.SERVICE]
        handlers = service.handlers(
            store, engine.runtime, _limits(config), EOF, gate, origins, chunks
        )
        if nodes is not None:
            handlers = [*map(Circle(nodes, metrics).before, handlers)]
        engine.add_generic_rpc_handlers(
            [
                *handlers,
                admin.Admin(local.administration(), engine.runtime, gate).handler(),
                checks.handler(),
                reflection.handler(names, gate),
            ]
        )
        files = tls.open_files(config)
        for address in task.addresses:
            if files is None or tls.is_plain(address):
                engine.add_insecure_port(address)
            else:
                engine.add_secure_port(address, tls.server_credentials(files))

        writes = Watch(Board(task.board))
        engine.start()
        checks.serving(names)
        link.tell(Event(READY))
        while not link.stop_requested(BEAT_INTERVAL):
            local.check()
            # Liveness must come from the engine's own loop, not from this thread.
            if engine.alive(BEAT_INTERVAL):
                link.tell(Event(BEAT))
            checks.ready(writes.writable(time.time()))

        checks.draining()
        engine.stop(config.drain_timeout)
        while not engine.wait_for_termination(BEAT_INTERVAL):
            link.check()
        # Syncs what was acknowledged: nothing may be served after it.
        opened.close()


def _limits(config: Config) -> Limits:
    return Limits(
        functions=config.digest_functions,
        max_blob_size=config.max_blob_size,
        max_batch_total_size=config.max_batch_total_size,
        require_references=config.require_references,
        max_uploads_per_client=config.max_uploads_per_client,
    )


def _origin_options(config: Config) -> OriginOptions:
    return OriginOptions(
        hosts=config.fetch_hosts,
        private=config.fetch_private,
        max_size=min(config.fetch_max_size, config.max_blob_size),
        timeout=config.fetch_timeout,
    )


def _engine(config: Config, metrics: Metrics) -> Engine:
    return make_engine(
        config.engine,
        EngineOptions(
            max_message_bytes=config.max_message_size,
            max_concurrent_calls=config.max_concurrent_calls,
            helper_threads=config.helper_threads,
            stall_timeout=config.stall_timeout,
            metrics=metrics,
            tools=Tools(metrics, caller.tool),
        ),
    )


if __name__ == "__main__":
    sys.exit(process.main(sys.argv[1:], serve))
