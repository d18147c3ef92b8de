"""How a coroutine waits for other threads, whichever loop runs it.

Rule: a protocol only; the engine of gRPC, or the loop of HTTP, gives what keeps it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

from cas.store.pending import Pending

T = TypeVar("T")


class Runtime(Protocol):
    """The part of an engine, or of an event loop, that the rules here need."""

    def wait(self, pending: Pending[T], /) -> Awaitable[T]:
        """Resumes the coroutine with the pending's result, or its error."""

    def offload(self, function: Callable[..., T], /, *args: Any) -> Awaitable[T]:
        """Runs `function(*args)` on a helper thread (disk reads, hashing)."""
