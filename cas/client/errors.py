"""What a remote can answer besides success.

Rule: one class per thing a caller may do about it: try again, log in, ask for rights, use
something else.  What the store's own errors say already (`cas.errors`: NotFound,
InvalidArgument, DigestMismatch) is raised as those.  No gRPC code and no HTTP status lives
here: `cas.client.overgrpc` and `cas.client.overhttp` each hold one table.
"""

from cas.errors import CasError


class RemoteError(CasError):
    """The remote refused or failed, for a reason that has no class of its own."""


class Unavailable(RemoteError):
    """The remote cannot be reached, or broke off, or is too busy: worth trying again."""


class Unauthenticated(RemoteError):
    """The remote wants credentials, or others."""


class PermissionDenied(RemoteError):
    """The credentials are known and do not allow this."""


class Unsupported(RemoteError):
    """The remote does not serve what was asked of it."""


class BadTree(CasError):
    """A tree cannot be described or written out: a name, a kind of file, a loop."""
