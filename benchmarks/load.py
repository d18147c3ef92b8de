"""One load-generator process: a closed loop of operations against one server.

Rule: started by `benchmarks.generator` as ``python -m benchmarks.load ADDRESS
CONNECTIONS``; reads one JSON line for each run on stdin, answers with JSON lines
on stdout.  The dialogue: a run's share → ``prepared``; ``go`` → ``done`` at once
when the last operation has ended, then the figures (so that reading the server's
CPU time does not wait for them to be put together).
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Any

import grpc.aio

from benchmarks.operations import Prepared, Share, Stubs, prepare
from benchmarks.workloads import MIB, parse

ERRORS_THAT_END_A_RUN = 20

_CHANNEL_OPTIONS = [
    # Each channel gets a connection of its own, as a client's processes would.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", 64 * MIB),
    ("grpc.max_send_message_length", 64 * MIB),
    ("grpc.enable_http_proxy", 0),
]


class Loop:
    """Keeps `slots` operations in flight until the time is over or nothing is left to send."""

    def __init__(self, prepared: Prepared, slots: int, seconds: float) -> None:
        self._prepared = prepared
        self._slots = slots
        self._seconds = seconds
        self._next = 0
        self._latencies: list[int] = []
        self._errors = 0
        self._first_error = ""

    async def run(self) -> None:
        self._started = time.perf_counter()
        self._until = self._started + self._seconds
        await asyncio.gather(*(self._slot(slot) for slot in range(self._slots)))
        self._ended = time.perf_counter()

    async def _slot(self, slot: int) -> None:
        operation, limit = self._prepared.operation, self._prepared.limit
        clock = time.perf_counter
        while (began := clock()) < self._until:
            number = self._next
            if limit is not None and number >= limit:
                return
            self._next += 1
            try:
                await operation(slot, number)
            except Exception as error:  # noqa: BLE001 - whatever went wrong makes the run invalid
                self._errors += 1
                self._first_error = self._first_error or describe(error)
                if self._errors >= ERRORS_THAT_END_A_RUN:
                    return
            else:
                self._latencies.append(int((clock() - began) * 1e6))

    def figures(self) -> dict[str, Any]:
        return {
            "seconds": self._ended - self._started,
            "latencies_us": self._latencies,
            "errors": self._errors,
            "first_error": self._first_error,
        }


def describe(error: Exception) -> str:
    if isinstance(error, ExceptionGroup):
        return describe(error.exceptions[0])
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    return f"{type(error).__name__}: {error}"


def _say(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


async def _listen() -> str:
    return await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)


async def serve(address: str, connections: int) -> None:
    channels = [
        grpc.aio.insecure_channel(address, options=_CHANNEL_OPTIONS) for _ in range(connections)
    ]
    stubs = [Stubs(channel) for channel in channels]
    while line := await _listen():
        order = json.loads(line)
        slots = order.pop("slots")
        share = Share(**{**order, "workload": parse(order["workload"])})
        try:
            prepared = await prepare(share, stubs)
        except Exception as error:  # noqa: BLE001 - the other side has to be told
            _say({"failed": describe(error)})
            continue
        _say({"prepared": True})
        await _listen()
        loop = Loop(prepared, slots, share.seconds)
        await loop.run()
        _say({"done": True})
        _say(loop.figures())
    for channel in channels:
        await channel.close()


def runner() -> Callable[[Coroutine[Any, Any, None]], None]:
    """uvloop's where it is installed: a fifth less client CPU for each operation."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run
    return uvloop.run


if __name__ == "__main__":
    runner()(serve(sys.argv[1], int(sys.argv[2])))
