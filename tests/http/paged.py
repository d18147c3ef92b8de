"""A server with the page at ``/``, in this process, whose supervisor is the test.

Rule: what the tests of its answers and those in a browser share.
"""

from __future__ import annotations

import base64
import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import bcrypt

from cas.access.access import Access
from cas.access.authenticate import open_authenticator
from cas.access.roles import Policy, Role, Rule
from cas.access.settings import AccessSettings
from cas.http import counts, page
from cas.http.context import Context, HttpLimits
from cas.http.gate import Gate
from cas.http.runtime import LoopRuntime
from cas.http.server import HttpServer
from cas.http.service import Service
from cas.http.writing import Writer
from cas.metrics import families
from cas.metrics.board import Board, new_board
from cas.metrics.history import History
from cas.metrics.instruments import Metrics
from cas.metrics.tools import Tools
from cas.pb import remote_execution_pb2 as pb
from cas.store.directory import prepare
from cas.store.local import StoreOptions, open_store
from tests.http.serving import MAX_BLOB, PATIENCE, Served, sha

USERS = {"alice": "wonderland", "bob": "builder-builder"}
RULES = (Rule(Role.WRITE, "user:alice"), Rule(Role.READ, "user:bob", "shared"))


@dataclass
class Watched:
    """A server with the page, whose supervisor is the test."""

    served: Served
    metrics: Metrics
    board: Board

    def json(self, page: str, user: str = "", **fields: str) -> Any:
        query = f"?{urlencode(fields)}" if fields else ""
        reply = self.served.get(page + query, **credentials(user))
        assert reply.status == 200, reply.text
        return json.loads(reply.body)

    def now(self, condition: Callable[[Any], object], user: str = "") -> Any:
        """What there is, once it is as expected: all is told anew once a second."""
        deadline = time.monotonic() + PATIENCE
        while True:
            told = self.json("/-/now", user)
            if condition(told):
                return told
            assert time.monotonic() < deadline, told
            time.sleep(0.05)

    def put(self, data: bytes, instance: str = "", user: str = "") -> pb.Digest:
        path = f"/{instance}/cas/{sha(data)}" if instance else f"/cas/{sha(data)}"
        assert self.served.ask("PUT", path, data, **credentials(user)).status == 200
        return pb.Digest(hash=sha(data), size_bytes=len(data))

    def put_result(self, key: bytes, result: pb.ActionResult, instance: str = "") -> str:
        path = f"/{instance}/ac/{sha(key)}" if instance else f"/ac/{sha(key)}"
        assert self.served.put(path, result.SerializeToString()).status == 200
        return sha(key)


def credentials(user: str) -> dict[str, str]:
    if not user:
        return {}
    return {"Authorization": f"Basic {base64.b64encode(f'{user}:{USERS[user]}'.encode()).decode()}"}


@contextmanager
def watching(directory: Path, *, locked: bool = False) -> Iterator[Watched]:
    with ExitStack() as opened:
        board = opened.enter_context(closing(new_board()))
        supervisor = Metrics(board.sheet(0))
        supervisor.sheet.belongs_to("supervisor", 0)
        supervisor.gauge(families.STARTED_AT).set(time.time())
        supervisor.gauge(families.WORKERS, "grpc").set(1)
        supervisor.gauge(families.WORKERS_WANTED, "grpc").set(1)
        metrics = Metrics(board.sheet(1))
        metrics.sheet.belongs_to("http", 0)
        History(board).keep(time.time())
        opened.callback(prepare(directory / "store").close)
        store = open_store(directory / "store", StoreOptions(durability="none"), metrics=metrics)
        opened.callback(store.close)
        gate = Gate(opened.enter_context(_access(directory))) if locked else None

        def service(loop: Any) -> Service:
            runtime = LoopRuntime(loop, 4)
            opened.callback(runtime.close)
            limits = HttpLimits(max_blob_size=MAX_BLOB)
            context = Context(store, runtime, limits, Writer(store, runtime))
            shown = page.pages(board, context, store.administration(), gate)
            return Service(context, shown, metrics, gate, Tools(metrics, counts.tool))

        server = HttpServer(service)
        bound = socket.socket()
        bound.bind(("127.0.0.1", 0))
        server.add_socket(bound)
        server.start()
        try:
            yield Watched(Served(store, server, bound.getsockname()[1]), metrics, board)
        finally:
            server.stop(1.0)
            assert server.wait_for_termination(PATIENCE)


@contextmanager
def _access(directory: Path) -> Iterator[Access]:
    lines = [
        f"{name}:{bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()}"
        for name, password in USERS.items()
    ]
    (directory / "htpasswd").write_text("\n".join(lines))
    settings = AccessSettings(htpasswd=directory / "htpasswd", policy=Policy(RULES, Role.NONE))
    access = Access(open_authenticator(settings))
    try:
        yield access
    finally:
        access.close()
