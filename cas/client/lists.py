"""Lists of saves: how a save is found by the beginning of its key.

Rule: nothing but REAPI, which cannot list.  So each save enters itself into lists, which are
action results without outputs: one for every prefix of its key that ends behind a character
other than a letter or digit, and one for all (`boundaries`).  Who looks for a prefix reads the
list of the longest such prefix of it.  What follows from that:

- A list holds the `LISTED` newest saves.  A prefix that ends within a word is found only among
  the newest of the word's beginning.
- A list is read, extended and written back, for REAPI has no compare-and-swap.  A writer looks
  again a moment later whether its entry is there, and repeats; a save that finds its key taken
  repairs the lists.  Still, an entry can be lost to a writer that stalls between reading and
  writing.  Then the exact key works, and a fallback finds an older save.
- "Newest" is by the clocks of the machines that saved.
- A server may evict a list.  Fallbacks then find nothing until the next save.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from google.protobuf import any_pb2, json_format
from google.protobuf.message import DecodeError
from google.protobuf.struct_pb2 import Struct

from cas import digest as digests
from cas.client.client import AsyncClient
from cas.client.names import message_of
from cas.client.transfer import together
from cas.digest import Digest
from cas.pb import remote_execution_pb2 as pb

LISTED = 200
"""Saves in one list."""

BOUNDARIES = 12
"""Most lists that one key is entered into."""

TRIES = 8
"""Of entering a save into a list that others write as well."""

SETTLE_SECONDS = 0.1
"""After about so long a writer looks whether its entry is still there: several times what
another one needs between reading a list and writing it."""


@dataclass(frozen=True, order=True, slots=True)
class Entry:
    """A save in a list: when it was made, in seconds since 1970."""

    at: float
    key: str


def boundaries(text: str) -> list[str]:
    """The prefixes of a key, or of a prefix of one, that have a list: "" first."""
    ends = [0, *(at + 1 for at, char in enumerate(text) if not char.isalnum())]
    return [text[:end] for end in ends[:BOUNDARIES]]


def merge(entries: Iterable[Entry], more: Iterable[Entry]) -> list[Entry]:
    """Two lists as one: newest first, each key once, at most `LISTED`."""
    newest: dict[str, Entry] = {}
    for entry in (*entries, *more):
        known = newest.get(entry.key)
        if known is None or known.at < entry.at:
            newest[entry.key] = entry
    return sorted(newest.values(), reverse=True)[:LISTED]


def action_of(kind: str, name: str) -> Digest:
    """The digest of an action that only names something: kind "save" or "list"."""
    command = pb.Command(arguments=["cas", kind, name]).SerializeToString(deterministic=True)
    action = pb.Action(command_digest=message_of(digests.of(command)))
    return digests.of(action.SerializeToString(deterministic=True))


async def find(client: AsyncClient, prefix: str) -> list[Entry]:
    """The saves whose key begins with `prefix`, newest first, as far as lists tell."""
    listed = await _read_list(client, boundaries(prefix)[-1])
    return [entry for entry in listed if entry.key.startswith(prefix)]


async def enter(client: AsyncClient, entry: Entry) -> bool:
    """Puts a save on its lists; False where others kept taking it off, or none can be written."""
    listed = await together(_enter_list(client, prefix, entry) for prefix in boundaries(entry.key))
    return all(listed)


async def _enter_list(client: AsyncClient, prefix: str, entry: Entry) -> bool:
    action = action_of("list", prefix)
    for attempt in range(TRIES):
        entries = await _read_list(client, prefix)
        merged = merge(entries, [entry])
        if merged == entries or entry not in merged:
            # There already, or so old that a full list has no room for it.
            return True
        result = pb.ActionResult()
        set_note(
            result,
            {"prefix": prefix, "saves": [{"key": one.key, "at": one.at} for one in merged]},
        )
        await client.put_action(action, result)
        # Longer each time, and never the same for two.
        await asyncio.sleep(SETTLE_SECONDS * (1 + attempt * random.random()))
        if entry in await _read_list(client, prefix):
            return True
    return False


async def _read_list(client: AsyncClient, prefix: str) -> list[Entry]:
    result = await client.get_action(action_of("list", prefix))
    note = note_of(result) if result is not None else {}
    if note.get("prefix") != prefix:
        return []
    saves = note.get("saves")
    return merge(
        (
            Entry(float(one["at"]), one["key"])
            for one in (saves if isinstance(saves, list) else [])
            if isinstance(one, dict)
            and isinstance(one.get("at"), int | float)
            and isinstance(one.get("key"), str)
        ),
        (),
    )


def set_note(result: pb.ActionResult, note: dict[str, Any]) -> None:
    """Attaches a note in the place that REAPI keeps for what it does not define itself."""
    struct = Struct()
    struct.update(note)
    packed = any_pb2.Any()
    packed.Pack(struct, deterministic=True)
    result.execution_metadata.auxiliary_metadata.append(packed)


def note_of(result: pb.ActionResult) -> dict[str, Any]:
    for packed in result.execution_metadata.auxiliary_metadata:
        struct = Struct()
        try:
            if packed.Unpack(struct):
                return json_format.MessageToDict(struct)
        except (DecodeError, json_format.Error):
            continue
    return {}
