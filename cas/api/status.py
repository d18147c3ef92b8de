"""Errors as gRPC statuses: the one table.

Rule: every error that a call ends in passes through `of`.  Nothing else in `cas.api`
chooses a code.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

import grpc

from cas import errors

if TYPE_CHECKING:
    from cas.api.gate import Gate
    from cas.rpc.handler import Context

T = TypeVar("T")

_CODES: dict[type[BaseException], grpc.StatusCode] = {
    errors.InvalidArgument: grpc.StatusCode.INVALID_ARGUMENT,
    errors.OutOfRange: grpc.StatusCode.OUT_OF_RANGE,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    errors.UploadSuperseded: grpc.StatusCode.ABORTED,
    errors.LimitExceeded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.MissingReferences: grpc.StatusCode.FAILED_PRECONDITION,
    errors.Circular: grpc.StatusCode.FAILED_PRECONDITION,
    errors.DataLoss: grpc.StatusCode.DATA_LOSS,
    errors.StoreClosed: grpc.StatusCode.UNAVAILABLE,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
}

_WANT = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)
"""What passes when others end."""

OK = 0

log = logging.getLogger("cas.api")


def of(error: BaseException) -> tuple[grpc.StatusCode, str]:
    """The code and the message that a client gets for `error`.

    What is not one of `cas.errors` is a fault of ours: INTERNAL, its text kept in the log.
    """
    for kind in type(error).__mro__:
        code = _CODES.get(kind)
        if code is not None:
            if code is grpc.StatusCode.DATA_LOSS:
                log.error("stored data is damaged", extra={"error": str(error)})
            return code, str(error)
    if isinstance(error, OSError) and error.errno is not None:
        # The disk's or the system's fault, not ours: no traceback needed to see what is wrong.
        reason = error.strerror or str(error)
        log.error("the system refused an operation", extra={"error": str(error)})
        if error.errno in _WANT:
            return grpc.StatusCode.RESOURCE_EXHAUSTED, f"the server lacks resources: {reason}"
        return grpc.StatusCode.INTERNAL, f"the server's disk fails: {reason}"
    log.error("a call failed", exc_info=error)
    return grpc.StatusCode.INTERNAL, "internal error; the server's log has the details"


def number(code: grpc.StatusCode) -> int:
    """A code as google.rpc.Status holds it."""
    value: int = code.value[0]
    return value


def guarded(
    method: Callable[[Any, Context], Awaitable[T]], gate: Gate | None = None
) -> Callable[[Any, Context], Awaitable[T]]:
    """`method`, ending its call with the right status when it raises; behind `gate`, if any."""
    behind = method if gate is None else _admitting(method, gate)

    async def call(request: Any, context: Context) -> T:
        try:
            return await behind(request, context)
        except errors.CasError as error:
            code, message = of(error)
        except Exception as error:
            if context.done():
                raise
            code, message = of(error)
        return await context.abort(code, message)

    return call


def _admitting(
    method: Callable[[Any, Context], Awaitable[T]], gate: Gate
) -> Callable[[Any, Context], Awaitable[T]]:
    async def call(request: Any, context: Context) -> T:
        await gate.admit(context)
        return await method(request, context)

    return call
