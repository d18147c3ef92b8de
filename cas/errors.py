"""The errors of the store and of everything below the protocols.

Rule: an error here says what is wrong in the store's terms and carries a
message that names the offending value and what was expected.  No gRPC code and
no HTTP status lives here; `cas.api.status` and `cas.http` each hold one table
that maps these classes.  This module imports nothing of ours.
"""


class CasError(Exception):
    """Base of every error that the project raises on purpose."""


class InvalidArgument(CasError):
    """The caller's value is malformed: a name, hash, size, offset or message."""


class DigestMismatch(InvalidArgument):
    """The bytes received do not hash to the digest under which they came."""


class BatchTooLarge(InvalidArgument):
    """A batch, or its answer, would exceed the limit that capabilities advertise.

    REAPI BatchUpdateBlobs and BatchReadBlobs ask for INVALID_ARGUMENT.
    """


class BlobTooLarge(InvalidArgument):
    """A blob is larger than `max_blob_size` (REAPI: max_cas_blob_size_bytes)."""


class OutOfRange(CasError):
    """A read offset is negative or beyond the end of the blob."""


class NotFound(CasError):
    """No such blob, action result or upload."""


class AlreadyExists(CasError):
    """What was to be made is here, of other parts than those that were named."""


class Unauthenticated(CasError):
    """Who calls is not known: credentials are wrong, or absent where they are needed."""


class PermissionDenied(CasError):
    """Who calls is known, and may not do this."""


class UploadSuperseded(CasError):
    """A later stream took over this upload name; this one must stop."""


class LimitExceeded(CasError):
    """A configured limit other than a size in the request was reached."""


class NoSpace(LimitExceeded):
    """The disk or the index has no room for what was to be written."""


class NoRoomYet(NoSpace):
    """So far there is none, which a wait may mend.  Nothing was written."""

    def __init__(self, message: str, size: int) -> None:
        """`size`: the bytes that are to have room."""
        super().__init__(message)
        self.size = size


class MissingReferences(CasError):
    """An action result names blobs that are absent, and the server refuses those."""


class DataLoss(CasError):
    """Stored bytes are damaged: they no longer match what the index says of them."""


class Unavailable(CasError):
    """What lies upstream cannot be had now; the caller may try again later."""


class Circular(CasError):
    """What is asked is an outcome of this node's own question: it is its own upstream."""


class StoreClosed(CasError):
    """The store is shutting down; the caller may try again elsewhere or later."""


class StoreInUse(CasError):
    """Another server already runs on this directory."""


class FormatMismatch(CasError):
    """The directory holds a store of another format version; it was not touched."""


class ConfigError(CasError):
    """An option, environment variable or configuration key is wrong; names it."""
