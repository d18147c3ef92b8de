"""Errors as HTTP statuses: the one table.

Rule: every error that a request ends in passes through `of`.  What only HTTP knows of is
`Refused`, raised in this package and nowhere below.
"""

from __future__ import annotations

import logging
from http import HTTPStatus

from cas import errors

_STATUSES: dict[type[BaseException], HTTPStatus] = {
    errors.InvalidArgument: HTTPStatus.BAD_REQUEST,
    errors.BlobTooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    errors.OutOfRange: HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
    errors.NotFound: HTTPStatus.NOT_FOUND,
    errors.AlreadyExists: HTTPStatus.CONFLICT,
    errors.Unauthenticated: HTTPStatus.UNAUTHORIZED,
    errors.PermissionDenied: HTTPStatus.FORBIDDEN,
    errors.UploadSuperseded: HTTPStatus.CONFLICT,
    errors.LimitExceeded: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.NoSpace: HTTPStatus.INSUFFICIENT_STORAGE,
    errors.MissingReferences: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.Circular: HTTPStatus.LOOP_DETECTED,
    errors.DataLoss: HTTPStatus.INTERNAL_SERVER_ERROR,
    errors.StoreClosed: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.Unavailable: HTTPStatus.SERVICE_UNAVAILABLE,
}

log = logging.getLogger("cas.http")


class Refused(errors.CasError):
    """The request cannot be served as it is, for a reason of HTTP's own."""

    def __init__(self, status: HTTPStatus, message: str, **fields: str) -> None:
        """`fields` are header fields for the answer, ``_`` for ``-``."""
        super().__init__(message)
        self.status = status
        self.fields = {name.replace("_", "-"): value for name, value in fields.items()}


def of(error: BaseException) -> tuple[HTTPStatus, str, dict[str, str]]:
    """The status, message and header fields that a client gets for `error`.

    What is not one of `cas.errors` is a fault of ours: 500, its text kept in the log.
    """
    if isinstance(error, Refused):
        return error.status, str(error), error.fields
    for kind in type(error).__mro__:
        status = _STATUSES.get(kind)
        if status is not None:
            if kind is errors.DataLoss:
                log.error("stored data is damaged", extra={"error": str(error)})
            fields = {"Retry-After": "1"} if status is HTTPStatus.SERVICE_UNAVAILABLE else {}
            return status, str(error), fields
    log.error("a request failed", exc_info=error)
    message = "internal error; the server's log has the details"
    return HTTPStatus.INTERNAL_SERVER_ERROR, message, {}
