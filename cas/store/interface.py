"""The store's contract: what every store promises.

Rule: protocols, and the values that cross them; the docstrings are the contract
and `tests/store/contract` holds every implementation to them.

Common promises:

* A blob is visible whole or not at all, and only after its bytes were hashed and
  found to match its digest.
* A write's `Pending` is resolved when the write is as durable as the store's
  durability mode says, and visible to every later read of any process.
* Asking for a blob's presence counts as a use of it, as does reading it.
* The empty blob of every digest function is always present.
* Methods may be called from any thread.  Those marked *blocking* may wait for the
  disk and belong on a helper thread; the others touch memory and the index only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from cas.digest import Digest, Function
from cas.store.pending import Pending

Buffer = bytes | bytearray | memoryview

Durability = Literal["strict", "batch", "none"]
Compression = Literal["none", "zstd"]


class Action(NamedTuple):
    """A stored action result."""

    result: bytes
    """The ActionResult exactly as it was sent."""
    references: Sequence[bytes]
    """Keys of the blobs that it needs."""
    expanded: bool
    """False when a tree that it names was absent when it was written, so that
    `references` may lack what that tree names."""
    complete: bool
    """Whether every blob in `references` is present; if so, all were just used."""


class Held(Protocol):
    """What keeps bytes where they are."""

    def release(self) -> None: ...


class Found(NamedTuple):
    """A blob that was looked for by its hash alone."""

    digest: Digest
    data: bytes | memoryview | None
    """All of it if that needs no file."""
    held: Held | None = None
    """What `data` is a view of, if it is one.  Released, or dropped, at once after use: nothing
    is awaited with it in hand."""


class Value(NamedTuple):
    """What is kept under a key of a client's choice."""

    digest: Digest
    """Of its content."""
    data: bytes | None
    """Its content, where that is not a blob: `open(digest)` then."""
    meta: bytes
    """As `NewValue.meta`."""
    references: Sequence[bytes] = ()
    """As `NewValue.references`: all of them are here, and were just used."""


class Blob(Protocol):
    """An open blob.  Its bytes stay readable until `close`, even if it is evicted."""

    @property
    def size(self) -> int: ...

    def read_into(self, view: memoryview, offset: int, /, *, wait: bool = True) -> int:
        """Reads up to len(view) bytes at `offset`; the count, short only at the end.

        `wait` False never waits for the disk: -1 when bytes are not in memory.
        Raises DataLoss when the stored bytes end before `size`.
        """

    def fileno(self) -> int | None:
        """A descriptor of a file that holds the blob's bytes from offset 0 on, for the system
        to send from, valid until `close`; None where there is no such file."""

    def packed(self) -> Blob | None:
        """The blob as zstd, exactly as it is stored, where it is: any number of frames.  It
        takes the place of this one: either is to be closed, not both."""

    def close(self) -> None: ...


class Spool(Protocol):
    """Bytes on their way in whose digest is not known yet.  Used by one caller at a time;
    cannot be resumed."""

    @property
    def size(self) -> int:
        """Bytes taken so far."""

    def append(self, data: bytes, /) -> bool:
        """Takes the next bytes.  True when `flush` is due: call that before the next append."""

    def flush(self) -> None:
        """*Blocking.*  Moves what was taken out of memory.  After NoRoomYet it may be called
        again."""

    def finish(self, expected: bytes | None = None, /) -> tuple[Digest, Pending[None]]:
        """*Blocking.*  Enters what was taken as a blob, and tells its digest.

        `expected` is the function's code and the hash that it must have.  Raises
        DigestMismatch; the spool is closed either way, but not by NoRoomYet, after which this may
        be called again.
        """

    def discard(self) -> None:
        """*Blocking.*  Forgets the bytes.  Nothing on a closed one."""


class Upload(Protocol):
    """One stream's hold on an upload.  Used by one caller at a time."""

    @property
    def digest(self) -> Digest: ...

    @property
    def offset(self) -> int:
        """The offset at which the next byte belongs: bytes kept so far, those not yet
        flushed included."""

    def append(self, data: Buffer, /) -> bool:
        """Takes the next bytes.  True when `flush` is due: call that before the next append,
        and leave the bytes unchanged until then.

        Raises InvalidArgument when there would be more than the digest's size.
        """

    def flush(self) -> None:
        """*Blocking.*  Moves what was taken to the staging file: it survives the process.

        Raises UploadSuperseded when a later stream has taken the upload over.
        """

    def finish(self) -> Pending[None]:
        """*Blocking.*  Checks the digest and enters the blob.

        On DigestMismatch the upload is discarded.  The upload is closed either way.
        Of one that was gathered it raises NoRoomYet, and may be called again then.
        """

    def suspend(self, *, durable: bool = False) -> int:
        """*Blocking.*  Flushes and lets go: the upload can be resumed, here, by another
        process or after a restart.  The committed size; synced first when `durable`.
        Does nothing on a closed upload.

        Of one that was gathered it raises NoRoomYet, and may be called again then.
        """

    def discard(self) -> None:
        """*Blocking.*  Forgets the upload and its bytes.  Nothing on a closed one."""


class Beyond(Protocol):
    """What lies behind a store and must be waited for.  Any thread may ask.

    A store with one answers for what is here; whoever needs more asks here, after a miss.  What
    fails because nothing is heard of it fails with Unavailable.
    """

    def present(self, keys: Sequence[bytes], /, *, sure: bool = False) -> Pending[set[bytes]]:
        """Those of `keys`, which are not here, that are there.  What nobody can tell is left out:
        a client that sends it once more does no harm.  `sure` does without the memory of what
        was absent a moment ago."""

    def bring(self, digests: Sequence[Digest], /) -> None:
        """Begins to fetch blobs that will be asked for presently."""

    def open(self, digest: Digest, /) -> Pending[Blob]:
        """The blob, which may be a `Coming`; from now on it is on its way here, whether or not it
        is read.  Fails with NotFound; with DataLoss where what is there is another one."""

    def find(self, prefix: bytes, /) -> Pending[Digest | None]:
        """As `BlobStore.find`."""

    def keep(self, keys: Sequence[bytes], /) -> Pending[None]:
        """Resolved once they are there: those that are here only are sent.  Fails with NotFound
        where one is neither here nor there."""

    def action(self, instance: str, digest: Digest, /) -> Pending[bytes | None]:
        """The ActionResult that is kept there."""

    def keep_action(self, instance: str, digest: Digest, action: NewAction, /) -> Pending[None]:
        """Keeps here what `action` gave; nobody need wait for it."""

    def served_action(self) -> None:
        """Counts an action result that was a miss here, and none after all."""


class BlobStore(Protocol):
    """Blobs by digest, uploads by name, action results by (instance, action digest)."""

    @property
    def beyond(self) -> Beyond | None:
        """None for a store that is all there is."""

    # --- blobs

    def present(self, keys: Sequence[bytes], /) -> set[bytes]:
        """Those of `keys` (`Digest.key`) that name a blob that is here."""

    def missing(self, keys: Sequence[bytes], /) -> list[int]:
        """Positions, ascending, of those `keys` that are absent."""

    def find_missing(self, keys: Sequence[bytes], /) -> list[int]:
        """As `missing`, for REAPI's FindMissingBlobs: sooner done, and may take a key for present
        that only looks like one that is, which comes about once in 10^18 looks.  Not for
        acknowledging a write."""

    def contains(self, digest: Digest, /) -> bool: ...

    def find(self, prefix: bytes, /) -> Digest | None:
        """The blob whose key begins with `prefix` (function code and hash), for protocols
        that name no size."""

    def look_up(self, prefix: bytes, /) -> Found | None:
        """As `find`, and reads the blob if that needs no file: one look at the index.  A use
        of the blob."""

    def read_small(self, digest: Digest, /) -> bytes | None:
        """The whole blob if that needs no file; None says nothing about other blobs."""

    def read_small_many(self, keys: Sequence[bytes], /) -> dict[bytes, bytes]:
        """As `read_small`, for many keys."""

    def open(self, digest: Digest, /) -> Blob:
        """Raises NotFound."""

    def put(self, blobs: Sequence[tuple[Digest, Buffer]], /) -> list[Pending[None]]:
        """Verifies and enters whole blobs; one result for each, in order, each failing on
        its own (DigestMismatch, NoSpace).  Blobs up to `inline_threshold` bytes touch
        memory only; with larger ones the call is *blocking*.
        """

    def room(self, size: int, /, *, waited: float = 0.0) -> Pending[None]:
        """Resolved once `size` bytes more have room: at once, as a rule; else what waits makes
        the store remove something.  Fails with NoSpace when that was of no use, or took too long
        with the seconds `waited` before.  A promise to nobody: what is written takes its room
        itself, and may still find none (NoRoomYet); see `cas.store.room`."""

    @property
    def inline_threshold(self) -> int:
        """Largest blob, in bytes, that is kept in the index rather than in a file."""

    # --- uploads

    def upload(self, name: str, digest: Digest, offset: int, data: Buffer, /) -> Upload:
        """*Blocking.*  Begins or resumes the upload `name` with `data` at `offset`, and takes
        it over from any stream that still holds it.

        Raises InvalidArgument, and leaves the upload to who has it, when `offset` is not the
        committed size or when there would be more than the digest's size; LimitExceeded when
        too many uploads are open.
        """

    def gather(self, name: str, digest: Digest, /) -> Upload | None:
        """Begins the upload `name`, which does not exist, in memory: until its `flush` or
        `suspend` nobody can resume it.  Its `finish` blocks for blobs of over `inline_threshold`
        bytes only.  None where the blob is too large for that, or too many are gathered already.
        Raises LimitExceeded."""

    def upload_exists(self, name: str, /) -> bool:
        """Whether `name` has a committed size to resume from.  Cheap."""

    def committed_size(self, name: str, /) -> int | None:
        """*Blocking.*  Bytes of the unfinished upload `name` that are kept; None if there is
        no such upload.  What it tells never decreases; in `strict` it is synced first."""

    def spool(self, function: Function, size: int | None, /) -> Spool:
        """Begins to take a blob whose hash by `function` is known at its end only, and its
        size perhaps before (`size`, in bytes).  Raises LimitExceeded."""

    # --- values

    def value(self, namespace: str, key: str, /, *, counted: bool = True) -> Value | None:
        """What is kept under `key`; None too if a blob that it needs is gone.  Namespaces keep
        apart what different protocols and instances put under one key.  Neither holds a zero
        byte.  It counts as a hit or a miss of the cache unless `counted` is False."""

    def put_value(self, namespace: str, key: str, value: NewValue, /) -> Pending[None]:
        """Keeps `value` under `key`, in place of what was there."""

    def drop_value(self, namespace: str, key: str, /) -> Pending[None]:
        """Forgets what is kept under `key`, if anything."""

    # --- action results

    def action(self, instance: str, digest: Digest, /) -> Action | None:
        """The action result, and whether it is complete.  The size in `digest` does not
        count: protocols exist that name an action by its hash alone."""

    def put_action(self, instance: str, digest: Digest, action: NewAction, /) -> Pending[None]: ...

    def drop_action(self, instance: str, digest: Digest, action: Action, /) -> None:
        """Forgets a dead action result, unless it was replaced or is fresh: its blobs may
        still be on their way."""

    # --- life

    def close(self) -> None:
        """*Blocking.*  Commits and syncs what is under way, then lets go of everything."""


@dataclass(frozen=True, slots=True)
class NewAction:
    """An action result to keep."""

    result: bytes
    """The ActionResult's bytes; they go back as they are."""
    references: Sequence[bytes]
    """Keys of every blob that it needs, as far as known."""
    expanded: bool
    """Whether the references cover what its trees name."""
    author: str = ""
    """Who writes it: principal and tool, for people."""


@dataclass(frozen=True, slots=True)
class NewValue:
    """A value to keep."""

    digest: Digest
    """Of its content, verified by the caller."""
    data: bytes | None
    """Its content, at most `BlobStore.inline_threshold` bytes; None where the store has it as
    a blob."""
    meta: bytes = b""
    """Up to 64 KiB that go back with it."""
    author: str = ""
    """As `NewAction.author`."""
    references: Sequence[bytes] = ()
    """Keys of further blobs without which it is of no use, in any order and any number of times;
    only where `data` is None."""
