"""What operators and their machines read: /metrics, /healthz, /readyz, /status.

Rule: answers of what `cas.metrics` says, made on a helper thread; nothing of the store.
"""

from __future__ import annotations

import json
from functools import partial
from http import HTTPStatus

from aiohttp.web import BaseRequest

from cas.http.answers import JSON, TEXT, Answer
from cas.http.runtime import LoopRuntime
from cas.http.service import Page
from cas.metrics import exposition
from cas.metrics.board import Board

_FRESH = b"Cache-Control: no-store\r\n"
_EXPOSITION = f"Content-Type: {exposition.CONTENT_TYPE}\r\n".encode()


def pages(board: Board, runtime: LoopRuntime, upstream: str = "") -> dict[str, Page]:
    """By path.  `/healthz` is answered by whoever lives; `/readyz` is 503 while the server
    cannot write, and says why."""

    async def healthz(request: BaseRequest) -> Answer:
        return _text(HTTPStatus.OK, "ok")

    async def readyz(request: BaseRequest) -> Answer:
        ready, reason = await runtime.offload(exposition.ready, board)
        if ready:
            # Balancers look at the status alone: who stays without upstream still serves.
            told = await runtime.offload(exposition.upstream_down, board)
            return _text(HTTPStatus.OK, f"ok, but {told}" if told else "ok")
        return _text(HTTPStatus.SERVICE_UNAVAILABLE, f"not ready: {reason}")

    async def metrics(request: BaseRequest) -> Answer:
        text = await runtime.offload(exposition.render, board)
        return Answer(HTTPStatus.OK, _EXPOSITION + _FRESH, text)

    async def status(request: BaseRequest) -> Answer:
        told = await runtime.offload(partial(exposition.status, board, upstream=upstream))
        return Answer(HTTPStatus.OK, JSON + _FRESH, json.dumps(told).encode() + b"\n")

    return {"/healthz": healthz, "/readyz": readyz, "/metrics": metrics, "/status": status}


def _text(status: HTTPStatus, line: str) -> Answer:
    return Answer(status, TEXT + _FRESH, line.encode() + b"\n")
