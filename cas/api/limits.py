"""What an operator allows clients to ask of the services."""

from __future__ import annotations

from dataclasses import dataclass


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
