"""Reading one blob by a client that costs next to nothing: a socket, and what has to be said.

Rule: what is timed is the server.  gRPC's own client in Python takes three times as long for 64 MiB
as this does, by itself.
"""

from __future__ import annotations

import socket
import struct
import time

from cas.pb import bytestream_pb2
from tests.conformance.client import MIB, Blob

_DATA, _HEADERS, _SETTINGS, _WINDOW_UPDATE = 0, 1, 4, 8
_END_STREAM, _END_HEADERS = 1, 4
_MOST = (1 << 31) - 1
"""Of a window, in bytes."""
_LARGEST = (1 << 24) - 1
"""Of a frame."""


def over_http(address: str, blob: Blob) -> tuple[float, float]:
    """Seconds to the first byte, and to the last."""
    said = f"GET /cas/{blob.hash} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    buffer = bytearray(MIB)
    with _connected(address) as connection:
        began, first, size = time.monotonic(), 0.0, 0
        connection.sendall(said.encode())
        while count := connection.recv_into(buffer):
            first = first or time.monotonic() - began
            size += count
        assert size > blob.size or blob.size < MIB
        return first, time.monotonic() - began


def over_grpc(address: str, blob: Blob) -> tuple[float, float]:
    """As `over_http`, by ByteStream's Read."""
    said = bytestream_pb2.ReadRequest(resource_name=blob.name).SerializeToString()
    greeting = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    greeting += _frame(_SETTINGS, 0, 0, struct.pack("!HIHI", 4, _MOST, 5, _LARGEST))
    greeting += _frame(_WINDOW_UPDATE, 0, 0, struct.pack("!I", _MOST - 65535))
    headers = {
        ":method": "POST", ":scheme": "http", ":authority": "x", "te": "trailers",
        ":path": "/google.bytestream.ByteStream/Read", "content-type": "application/grpc",
    }  # fmt: skip
    # Pseudo-headers first; each a literal that nobody need remember (RFC 7541, 6.2.2).
    block = b"".join(
        b"\0" + _text(name) + _text(value)
        for name, value in sorted(headers.items(), key=lambda header: header[0][0] != ":")
    )
    with _connected(address) as connection:
        connection.sendall(greeting)
        began, first, size = time.monotonic(), 0.0, 0
        connection.sendall(
            _frame(_HEADERS, _END_HEADERS, 1, block)
            + _frame(_DATA, _END_STREAM, 1, struct.pack("!BI", 0, len(said)) + said)
        )
        buffer = memoryview(bytearray(MIB))
        while True:
            _fill(connection, buffer[:9])
            length = int.from_bytes(buffer[:3], "big")
            kind, flags = buffer[3], buffer[4]
            if kind == _DATA:
                first = first or time.monotonic() - began
                size += length
            while length:
                length -= connection.recv_into(buffer[: min(length, MIB)])
            if kind == _HEADERS and flags & _END_STREAM:
                # The trailers.
                assert size > blob.size, size
                return first, time.monotonic() - began


def _connected(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)))


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack("!I", len(payload))[1:] + struct.pack("!BBI", kind, flags, stream) + payload


def _text(text: str) -> bytes:
    assert len(text) < 127
    return bytes([len(text)]) + text.encode()


def _fill(connection: socket.socket, view: memoryview) -> None:
    while view:
        count = connection.recv_into(view)
        assert count, "the server has closed the connection"
        view = view[count:]
