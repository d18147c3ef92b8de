"""What an operator allows clients to ask of the services."""

from __future__ import annotations

from dataclasses import dataclass

from cas.digest import ENABLED, Digest, Functions
from cas.errors import BatchTooLarge, BlobTooLarge


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes in bytes."""

    max_blob_size: int = 64 << 30
    """Largest blob accepted; 0 is no limit (REAPI: max_cas_blob_size_bytes)."""
    max_batch_total_size: int = 4 << 20
    """Blob bytes in one batch, either way (REAPI: max_batch_total_size_bytes)."""
    max_response: int = 4_000_000
    """Largest message sent with what a client did not have to ask for: inlined outputs and
    pages of trees.  Below gRPC's default limit of 4 MiB, which most clients keep."""
    require_references: bool = False
    """Refuse an action result that references absent blobs."""
    max_uploads_per_client: int = 0
    """Uploads in several messages that one address has open at once; 0 is no limit."""

    functions: Functions = ENABLED
    """Digest functions that may be named."""

    def check_blob(self, digest: Digest) -> None:
        """Raises BlobTooLarge."""
        if self.max_blob_size and digest.size > self.max_blob_size:
            raise BlobTooLarge(
                f"blob {digest} is larger than the limit (max_blob_size) of {self.max_blob_size}"
            )

    def check_batch(self, size: int, what: str) -> None:
        """Raises BatchTooLarge for a `what` (request or answer) of `size` blob bytes."""
        if size > self.max_batch_total_size:
            raise BatchTooLarge(
                f"the blobs of this {what} have {size} bytes, more than the limit "
                f"(max_batch_total_size) of {self.max_batch_total_size}"
            )
