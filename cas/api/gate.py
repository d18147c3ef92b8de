"""Who may call what over gRPC.

Rule: reads a call's credentials and asks `cas.access`; decides nothing itself.  Where nothing
is to be asked there is no gate at all, and calls pay nothing for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cas.access import certificates
from cas.access.authenticate import Caller
from cas.access.roles import Role
from cas.errors import Unauthenticated

if TYPE_CHECKING:
    from cas.access.access import Access
    from cas.rpc.handler import Context, Runtime

HEADER = "authorization"


class Gate:
    """What stands before a servicer's methods."""

    def __init__(self, access: Access, runtime: Runtime) -> None:
        self._access = access
        self._authenticator = access.authenticator
        self._runtime = runtime

    async def admit(self, context: Context) -> None:
        """Finds out who calls, and notes it in `context.caller`.

        Raises Unauthenticated for credentials that are wrong, whatever they are needed for.
        """
        header = None
        for key, value in context.invocation_metadata() or ():
            if key == HEADER:
                if header is not None or not isinstance(value, str):
                    raise Unauthenticated("the call has several authorization headers")
                header = value
        names = certificates.of_grpc(context.auth_context()) if self._access.certificates else ()
        found = self._authenticator.caller(header, names)
        context.caller = found if isinstance(found, Caller) else await self._runtime.wait(found)

    # Each is asked once `context.instance` is known.

    def read(self, context: Context) -> None:
        """Raises Unauthenticated or PermissionDenied."""
        self._access.require(context.caller, context.instance, Role.READ)

    def read_anywhere(self, context: Context) -> None:
        """Raises Unauthenticated or PermissionDenied."""
        self._access.require_anywhere(context.caller, Role.READ)

    def keeps(self, context: Context) -> bool:
        """Whether what the call writes is kept; False: it is answered as if it were.

        Raises Unauthenticated or PermissionDenied.
        """
        return self._access.keeps(context.caller, context.instance)

    def takes(self, context: Context) -> bool:
        """Whether what the caller writes is answered as if it were kept, kept or not."""
        return self._access.takes(context.caller, context.instance)

    def administer(self, context: Context) -> None:
        """Raises Unauthenticated or PermissionDenied."""
        self._access.require(context.caller, context.instance, Role.ADMIN)

    def administer_all(self, context: Context) -> None:
        """Raises Unauthenticated or PermissionDenied."""
        self._access.require_everywhere(context.caller, Role.ADMIN)
