"""What an operator removes by hand, and what he asks of who wrote what.

Rule: record before file, as in eviction; in the same transaction the index notes which file is
to go, so that a crash between the two leaves nothing behind for long.  Everything is *blocking*,
and works through many entries a piece at a time: a writer waits for one piece at most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from cas.digest import BY_CODE, Digest, Function
from cas.errors import InvalidArgument, NotFound
from cas.index.lmdb import Index
from cas.index.records import (
    IN_FILES,
    VALUE_PREFIX,
    ActionRecord,
    Record,
    action_key,
    unpack_action,
    value_namespace,
)
from cas.store.files import Files
from cas.store.layout import Layout

PIECE = 1000
"""Entries looked at, or removed, at once."""

_ALL_TIME = 2**32 - 1
"""As a minute of last use: later than any."""


class Written(NamedTuple):
    """An action result's record."""

    function: Function
    hash: bytes
    record: ActionRecord


class Page(NamedTuple):
    """A part of a list."""

    found: list[Written]
    next: bytes | None
    """Where the next part begins; None after the last one."""


class Administration:
    """Of one store.  Any thread, one call at a time each."""

    def __init__(self, index: Index, files: Files, layout: Layout) -> None:
        self._index = index
        self._files = files
        self._layout = layout

    def written(self, instance: str, digest: Digest) -> ActionRecord:
        """Who wrote an action result.  Raises NotFound."""
        packed = self._index.packed_action(_key(instance, digest))
        if packed is None:
            raise NotFound(f"no action result of {digest.hex} in instance {instance!r}")
        return unpack_action(packed)

    def list_written(self, instance: str, after: bytes | None) -> Page:
        """A part of an instance's records, in the order of their hashes; `after` is what the
        part before it named as `Page.next`.  Raises InvalidArgument."""
        prefix = action_key(instance, b"")
        start = prefix if after is None else after
        if not start.startswith(prefix):
            raise InvalidArgument("the page token is not one of this instance")
        found: list[Written] = []
        entries = self._index.keys(start, PIECE)
        for key, _ in entries:
            if not key.startswith(prefix):
                return Page(found, None)
            function = BY_CODE.get(key[len(prefix)])
            packed = self._index.packed_action(key)
            # It may have been removed since the page was read.
            if packed is not None and function is not None:
                found.append(Written(function, key[len(prefix) + 1 :], unpack_action(packed)))
        return Page(found, entries[-1][0] if len(entries) == PIECE else None)

    def place(self, instance: str, written: Written) -> bytes:
        """Where the part of a list behind `written` begins, as `Page.next` tells it."""
        return action_key(instance, written.function.prefix + written.hash)

    def delete_action(self, instance: str, digest: Digest) -> None:
        """Forgets an action result.  Raises NotFound."""
        key = _key(instance, digest)
        record = self._index.record(key)
        if record is None or not self._index.remove([(key, record)]):
            raise NotFound(f"no action result of {digest.hex} in instance {instance!r}")

    def delete_blob(self, digest: Digest) -> None:
        """Forgets a blob; it stays readable for those who read it now.  One that waits to be sent
        upstream never is; what is upstream already stays there.

        Raises NotFound, or InvalidArgument for the empty blob, which is always there.
        """
        if digest.size == 0:
            raise InvalidArgument("the empty blob cannot be removed: clients never send it")
        record = self._index.record(digest.key)
        # As if evicted, whenever it was used: that notes the file in the same transaction.
        if record is None or not self._index.evict(
            [(digest.key, record)], _ALL_TIME, unsent_too=True
        ):
            raise NotFound(f"no blob {digest}")
        if record.where in IN_FILES:
            self._files.remove(self._layout.copy(digest, record))
            self._index.evict([], 0, [record.serial])

    def drop_instance(self, instance: str, is_of: Callable[[str, str], bool]) -> Iterator[int]:
        """Forgets action results and values of an instance, a piece at a time; how many entries
        each piece removed.  `is_of` tells whether a namespace of values is an instance's.

        What is written meanwhile may stay.
        """
        yield from self._drop(action_key(instance, b""))
        namespace = VALUE_PREFIX
        while True:
            # The first key behind all of the last namespace's.
            found = self._index.keys(namespace, 1)
            if not found or not found[0][0].startswith(VALUE_PREFIX):
                return
            prefix, name = value_namespace(found[0][0])
            if is_of(name, instance):
                yield from self._drop(prefix)
            namespace = prefix[:-1] + b"\x01"
            yield 0

    def _drop(self, prefix: bytes) -> Iterator[int]:
        after = prefix
        while True:
            entries: list[tuple[bytes, Record]] = []
            for key, record in self._index.keys(after, PIECE):
                if not key.startswith(prefix):
                    break
                entries.append((key, record))
            if not entries:
                return
            after = entries[-1][0]
            yield len(self._index.remove(entries))


def _key(instance: str, digest: Digest) -> bytes:
    return action_key(instance, digest.prefix)
