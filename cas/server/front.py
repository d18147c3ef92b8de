"""One worker process of role http: the composition root.

Rule: as `cas.server.worker`, for `cas.http`: the only place that knows which store and which
protocols are put together; `serve` reads from start to drain, top to bottom.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time

from cas.config import Config
from cas.http import counts, operator, page
from cas.http.context import Context, HttpLimits
from cas.http.gate import Gate
from cas.http.runtime import LoopRuntime
from cas.http.server import HttpServer
from cas.http.service import Service
from cas.http.writing import Writer
from cas.metrics.board import Board
from cas.metrics.history import History
from cas.metrics.instruments import Metrics
from cas.metrics.tools import Tools
from cas.server import access, listen, process, tls
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
        store = open_tiered(local, config, metrics, nodes_of(config, task.node))
        if store is not local:
            opened.callback(store.close)

        allowed = access.open_access(config, task.addresses)
        board = Board(task.board)
        history = History(board)
        gate = None
        if allowed is not None:
            opened.callback(allowed.close)
            gate = Gate(allowed)

        def service(loop: asyncio.AbstractEventLoop) -> Service:
            runtime = LoopRuntime(loop, config.helper_threads)
            opened.callback(runtime.close)
            context = Context(store, runtime, _limits(config), Writer(store, runtime))
            shown = {
                **operator.pages(board, runtime, config.upstream),
                **page.pages(board, context, local.administration(), gate),
            }
            return Service(context, shown, metrics, gate, Tools(metrics, counts.tool))

        files = None if all(map(tls.is_plain, task.addresses)) else tls.open_files(config)
        server = HttpServer(service, tls=None if files is None else tls.ssl_context(files))
        for address in task.addresses:
            server.add_socket(listen.bind(address))

        server.start()
        link.tell(Event(READY))
        history.keep(time.time())
        while not link.stop_requested(BEAT_INTERVAL):
            local.check()
            # Liveness must come from the server's own loop, not from this thread.
            if server.alive(BEAT_INTERVAL):
                link.tell(Event(BEAT))
            history.keep(time.time())

        server.stop(config.drain_timeout)
        while not server.wait_for_termination(BEAT_INTERVAL):
            link.check()
        # Syncs what was acknowledged: nothing may be served after it.
        opened.close()


def _limits(config: Config) -> HttpLimits:
    return HttpLimits(
        functions=config.digest_functions,
        max_blob_size=config.max_blob_size,
        max_message_size=config.max_message_size,
        max_requests=config.max_concurrent_calls,
        require_references=config.require_references,
    )


if __name__ == "__main__":
    sys.exit(process.main(sys.argv[1:], serve))
