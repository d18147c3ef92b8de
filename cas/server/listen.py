"""The address to serve on, settled before any worker starts.

Rule: binds and looks, never listens.  Workers share a TCP port by SO_REUSEPORT, which
would also let a second server in silently and lose it half of the calls: so the port is
first bound without it.  A socket that stays bound holds the port, port 0's pick included,
while no worker lives.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cas.errors import CasError
from cas.options import Address, TcpAddress, UnixAddress, parse_address

_PICKS = 8
"""Tries to find one port that is free on every address of a host name."""


class AddressUnavailable(CasError):
    """The address to serve on cannot be had; names it and why."""


@dataclass(frozen=True, slots=True)
class Reserved:
    """An address that is ours to serve on."""

    shown: str
    """As the operator wrote it, with the real port."""
    addresses: tuple[str, ...]
    """What workers bind: one per address of the host, with numeric hosts.  Nothing for none."""
    shared: bool
    """Whether several workers can serve on it."""


@contextlib.contextmanager
def reserve(address: Address) -> Iterator[Reserved]:
    """Holds `address`, if any; a socket file is removed at the end.  Raises AddressUnavailable."""
    if address is None:
        yield Reserved("none", (), shared=True)
        return
    if isinstance(address, UnixAddress):
        _clear_socket(address)
        try:
            yield Reserved(str(address), (str(address),), shared=False)
        finally:
            with contextlib.suppress(AddressUnavailable, OSError):
                _clear_socket(address)
        return
    with contextlib.ExitStack() as stack:
        sockets = _hold_port(address)
        for held in sockets:
            stack.enter_context(held)
        bound = tuple(
            str(TcpAddress(name[0], name[1])) for name in (held.getsockname() for held in sockets)
        )
        port = sockets[0].getsockname()[1]
        yield Reserved(str(TcpAddress(address.host, port)), bound, shared=True)


def bind(address: str) -> socket.socket:
    """A socket of a worker's own on one of `Reserved.addresses`, not listening yet.

    Raises OSError naming the address when it cannot be bound.
    """
    parsed = parse_address(address)
    assert parsed is not None, "none is reserved by nobody"
    try:
        if isinstance(parsed, UnixAddress):
            with contextlib.ExitStack() as undo:
                opened = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
                opened.bind(parsed.path)
                undo.pop_all()
                return opened
        family = socket.AF_INET6 if ":" in parsed.host else socket.AF_INET
        return _bound(family, parsed.host, parsed.port, socket.SO_REUSEPORT, socket.SO_REUSEADDR)
    except OSError as error:
        raise OSError(error.errno, f"cannot serve on {address}: {error.strerror}") from error


def _hold_port(address: TcpAddress) -> list[socket.socket]:
    """Sockets bound to every address of the host, all with one port."""
    try:
        found = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (socket.gaierror, UnicodeError) as error:
        raise AddressUnavailable(f"cannot resolve {address}: {error}") from error
    targets = list(dict.fromkeys((family, str(name[0])) for family, _, _, _, name in found))
    for _ in range(_PICKS):
        try:
            return _bind_all(address, targets)
        except OSError as error:
            failure = error
            # Port 0's pick was free on the first address only: another pick may do.
            if address.port or not _busy(error):
                break
    reason = "it is in use by another process" if _busy(failure) else failure.strerror
    raise AddressUnavailable(f"cannot serve on {address}: {reason}") from failure


def _bind_all(
    address: TcpAddress, targets: Sequence[tuple[socket.AddressFamily, str]]
) -> list[socket.socket]:
    held: list[socket.socket] = []
    absent: OSError | None = None
    port = address.port
    with contextlib.ExitStack() as undo:
        for family, host in targets:
            try:
                held.append(undo.enter_context(_hold(family, host, port)))
                port = held[0].getsockname()[1]
            except OSError as error:
                # A name may have an address of a family that this machine does not have.
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                absent = error
        if absent is not None and not held:
            raise absent
        undo.pop_all()
    return held


def _hold(family: socket.AddressFamily, host: str, port: int) -> socket.socket:
    """A socket bound to `port` that others of this server may share."""
    if port:
        with _bound(family, host, port, socket.SO_REUSEADDR):
            pass
    try:
        return _bound(family, host, port, socket.SO_REUSEPORT)
    except OSError as error:
        if not _busy(error) or not port:
            raise
        # Only closed connections of an earlier server remain, or the line above had failed.
        return _bound(family, host, port, socket.SO_REUSEPORT, socket.SO_REUSEADDR)


def _bound(family: socket.AddressFamily, host: str, port: int, *options: int) -> socket.socket:
    with contextlib.ExitStack() as undo:
        opened = undo.enter_context(socket.socket(family, socket.SOCK_STREAM))
        for option in options:
            opened.setsockopt(socket.SOL_SOCKET, option, 1)
        opened.bind((host, port))
        undo.pop_all()
        return opened


def _busy(error: BaseException | None) -> bool:
    return isinstance(error, OSError) and error.errno == errno.EADDRINUSE


def _clear_socket(address: UnixAddress) -> None:
    """Removes the socket file unless somebody listens on it."""
    path = address.path
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise AddressUnavailable(f"cannot serve on {address}: the file there is not a socket")
    except FileNotFoundError:
        return
    except OSError as error:
        raise AddressUnavailable(f"cannot serve on {address}: {error.strerror}") from error
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        # A full backlog must count as somebody, not hang.
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        except FileNotFoundError:
            pass
        except OSError as error:
            reason = "it is in use" if error.errno == errno.EAGAIN else error.strerror
            raise AddressUnavailable(f"cannot serve on {address}: {reason}") from error
        else:
            raise AddressUnavailable(f"cannot serve on {address}: it is in use by another process")
