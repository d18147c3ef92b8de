"""Who may ask what over HTTP.

Rule: reads a request's credentials and asks `cas.access`; decides nothing itself.  Where nothing
is to be asked there is no gate at all, and requests pay nothing for it.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Final

from aiohttp.web import BaseRequest

from cas.access import certificates
from cas.access.access import Access
from cas.access.authenticate import Caller
from cas.access.roles import Role
from cas.errors import Unauthenticated
from cas.http.answers import JSON, Answer
from cas.http.context import CALLER
from cas.http.paths import Kind, Target
from cas.http.status import Refused

WRITES: Final = frozenset({"PUT", "DELETE", "MKCOL"})
"""Methods that change what is kept; the others read.  POST brings what is not kept."""

REALM: Final = 'realm="cas"'

_DROPPED: Final[dict[tuple[Kind, str], Answer]] = {
    ("webdav", "PUT"): Answer(201),
    ("webdav", "MKCOL"): Answer(201),
    ("turborepo", "PUT"): Answer(202, JSON, b'{"urls":[]}'),
}
"""What a write is answered that is not kept; 200 where nothing stands here."""


class Gate:
    """What stands before a service's handlers."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._authenticator = access.authenticator
        schemes = access.authenticator.schemes or ("Bearer",)
        self._challenge = ", ".join(f"{scheme} {REALM}" for scheme in schemes)

    async def admit(self, request: BaseRequest, target: Target) -> bool:
        """Whether the request is to be served: False for a write that is to be answered as if
        it were kept.  Raises PermissionDenied, or Refused with status 401."""
        try:
            caller = await self._caller(request)
            if request.method in WRITES:
                return self._access.keeps(caller, target.instance)
            if request.method != "OPTIONS":
                self._access.require(caller, target.instance, Role.READ)
        except Unauthenticated as error:
            raise self._who(error) from None
        return True

    async def admit_anywhere(self, request: BaseRequest) -> None:
        """For what belongs to no instance.  Raises as `admit`."""
        try:
            self._access.require_anywhere(await self._caller(request), Role.READ)
        except Unauthenticated as error:
            raise self._who(error) from None

    async def _caller(self, request: BaseRequest) -> Caller:
        """Who asks; noted in the request."""
        fields = request.headers.getall("Authorization", ())
        if len(fields) > 1:
            raise Unauthenticated("the request has several Authorization fields")
        names: tuple[str, ...] = ()
        if self._access.certificates:
            names = certificates.of_ssl(request.get_extra_info("peercert"))
        found = self._authenticator.caller(fields[0] if fields else None, names)
        if not isinstance(found, Caller):
            # Others may wait for the same check: a client that goes away must not end it.
            future = asyncio.wrap_future(found.future)
            future.add_done_callback(_noticed)
            found = await asyncio.shield(future)
        request[CALLER] = found
        return found

    def _who(self, error: Unauthenticated) -> Refused:
        fields = {"WWW_Authenticate": self._challenge}
        return Refused(HTTPStatus.UNAUTHORIZED, str(error), **fields)


def _noticed(future: asyncio.Future[Caller]) -> None:
    """So that a refusal is no complaint of asyncio's where the client has gone meanwhile."""
    if not future.cancelled():
        future.exception()


def dropped(request: BaseRequest, target: Target) -> Answer:
    """What a write gets that is not kept."""
    if request.method == "DELETE":
        return Answer(204)
    made = _DROPPED.get((target.kind, request.method))
    # One for each request: an answer counts what it sends.
    return Answer(200) if made is None else Answer(made.status, made.fields, made.body)
