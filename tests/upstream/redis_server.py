"""As much of a Redis server as the shared index asks for, in memory, on a port of its own.

Rule: speaks the protocol (RESP 2), so that the client is the real one; `real.py` has the real
server.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class RedisServer:
    def __init__(self) -> None:
        self.keys: dict[bytes, bytes] = {}
        self.asked: list[list[bytes]] = []
        """Commands about keys, in order."""
        self.fails = False
        self.port = 0

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def count(self, command: bytes) -> int:
        return sum(1 for asked in self.asked if asked[0].upper() == command)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readline()
                if not head:
                    return
                words = []
                for _ in range(int(head[1:])):
                    size = int((await reader.readline())[1:])
                    words.append((await reader.readexactly(size + 2))[:-2])
                writer.write(self._answer(words))
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def _answer(self, words: list[bytes]) -> bytes:
        command = words[0].upper()
        if command in {b"MGET", b"SET", b"DEL"}:
            self.asked.append(words)
            if self.fails:
                return b"-LOADING it fails\r\n"
        if command == b"MGET":
            found = [self.keys.get(key) for key in words[1:]]
            return b"*%d\r\n" % len(found) + b"".join(
                b"$-1\r\n" if value is None else b"$%d\r\n%b\r\n" % (len(value), value)
                for value in found
            )
        if command == b"SET":
            assert words[3].upper() == b"PX"
            assert int(words[4]) > 0
            self.keys[words[1]] = words[2]
            return b"+OK\r\n"
        if command == b"DEL":
            return b":%d\r\n" % (self.keys.pop(words[1], None) is not None)
        if command in {b"CLIENT", b"SELECT", b"PING"}:
            return b"+OK\r\n"
        return b"-ERR unknown command\r\n"


@contextmanager
def redis_server() -> Iterator[RedisServer]:
    server = RedisServer()
    loop = asyncio.new_event_loop()
    begun = threading.Event()

    async def begin() -> asyncio.Server:
        listens = await asyncio.start_server(server.serve, "127.0.0.1", 0)
        server.port = listens.sockets[0].getsockname()[1]
        return listens

    def run() -> None:
        listens = loop.run_until_complete(begin())
        begun.set()
        loop.run_forever()
        listens.close()
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    begun.wait()
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
