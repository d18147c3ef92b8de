"""The decision: may this caller do that?

Rule: one object for each process, the same for every protocol.  Without credentials the answer
is Unauthenticated, since they might help; with them it is PermissionDenied.
"""

from __future__ import annotations

from cas.access.authenticate import Authenticator, Caller
from cas.access.roles import ANONYMOUS, Role
from cas.errors import CasError, PermissionDenied, Unauthenticated

_DOES = {Role.READ: "read", Role.WRITE: "write", Role.ADMIN: "administer"}


class Access:
    """Who may do what.  Any thread may ask."""

    def __init__(
        self, authenticator: Authenticator, *, certificates: bool = False, discard: bool = False
    ) -> None:
        """`certificates`: whether connections may bring some.  `discard`: whether what a reader
        writes is answered as if it were kept."""
        self.authenticator = authenticator
        self.certificates = certificates
        self._discard = discard

    def close(self) -> None:
        self.authenticator.close()

    def require(self, caller: Caller, instance: str, role: Role) -> None:
        """Raises Unauthenticated or PermissionDenied."""
        if caller.rights.role(instance) < role:
            raise self._refusal(caller, f"in instance {instance!r}", role)

    def require_anywhere(self, caller: Caller, role: Role) -> None:
        """As `require`, for what belongs to no instance: the role in any of them will do."""
        if caller.rights.highest < role:
            raise self._refusal(caller, "in any instance", role)

    def require_everywhere(self, caller: Caller, role: Role) -> None:
        """As `require`, for what belongs to all instances."""
        if caller.rights.everywhere < role:
            raise self._refusal(caller, "in all instances", role)

    def keeps(self, caller: Caller, instance: str) -> bool:
        """Whether what `caller` writes is kept: not where it is to be answered as if it were,
        and dropped.  Raises Unauthenticated or PermissionDenied where it is to be refused."""
        role = caller.rights.role(instance)
        if role >= Role.WRITE:
            return True
        if self._discard and role == Role.READ:
            return False
        raise self._refusal(caller, f"in instance {instance!r}", Role.WRITE)

    def takes(self, caller: Caller, instance: str) -> bool:
        """Whether what `caller` writes is answered as if it were kept, kept or not."""
        return caller.rights.role(instance) >= (Role.READ if self._discard else Role.WRITE)

    def _refusal(self, caller: Caller, where: str, role: Role) -> CasError:
        does = _DOES[role]
        if caller.name != ANONYMOUS:
            return PermissionDenied(f"{caller.name} may not {does} {where}")
        schemes = self.authenticator.schemes
        ways = [f"an Authorization header ({' or '.join(schemes)})"] if schemes else []
        ways += ["a client certificate"] if self.certificates else []
        if not ways:
            return Unauthenticated(
                f"nobody may {does} {where}: the server has no authentication configured "
                "(htpasswd, tokens, [[jwt]] or tls_client_ca), and anonymous callers may not"
            )
        return Unauthenticated(f"to {does} {where} takes credentials: {' or '.join(ways)}")
