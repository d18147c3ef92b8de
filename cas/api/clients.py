"""What each client has open, so that one cannot take what is there for all.

Rule: counts only; who may do what is not decided here.  A client is an address: its port
differs for each connection, and nothing else of it can be trusted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from cas.errors import LimitExceeded


class OpenUploads:
    """Uploads that are open, by client.  For the engine's thread alone."""

    def __init__(self, limit: int) -> None:
        """`limit` is for each client; 0 is none."""
        self._limit = limit
        self._open: Counter[str] = Counter()

    @contextmanager
    def one_more(self, peer: str) -> Iterator[None]:
        """Counts an upload of `peer` (as gRPC writes it) while the block runs.

        Raises LimitExceeded when the client has as many as it may.
        """
        client = host(peer)
        count = self._open[client]
        if 0 < self._limit <= count:
            raise LimitExceeded(
                f"{count} uploads are open from {client}, the limit (max_uploads_per_client) "
                f"is {self._limit}"
            )
        self._open[client] = count + 1
        try:
            yield
        finally:
            if self._open[client] == 1:
                # Clients come and go: no trace of one is kept.
                del self._open[client]
            else:
                self._open[client] -= 1


def host(peer: str) -> str:
    """The address in ``ipv4:10.0.0.1:5000`` or ``ipv6:%5B::1%5D:5000``, without the port; all
    of ``unix:…``, whose clients cannot be told apart."""
    kind, _, rest = peer.partition(":")
    return rest.rpartition(":")[0] if kind in ("ipv4", "ipv6") else peer
