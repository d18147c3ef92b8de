"""Who wrote an action result, as it is kept beside it.

Rule: pure; three words of text, the last of which may hold spaces.  For people: nothing is
decided by it.
"""

from __future__ import annotations

from typing import NamedTuple

from cas.access.roles import ANONYMOUS


class Author(NamedTuple):
    """Empty where nothing is known."""

    principal: str
    """As `cas.access` names it."""
    peer: str
    """The address that the call came from, as gRPC writes it."""
    tool: str
    """What the client says of itself: ``bazel 7.1.0``."""


def pack(principal: str, peer: str, tool: str) -> str:
    """The text that `unpack` reads."""
    return f"{_word(principal or ANONYMOUS)} {_word(peer or 'unknown')} {_shown(tool)}".rstrip()


def unpack(text: str) -> Author:
    principal, _, rest = text.partition(" ")
    peer, _, tool = rest.partition(" ")
    return Author(principal, peer, tool)


def _word(text: str) -> str:
    return "".join(_shown(text).split())


def _shown(text: str) -> str:
    return "".join(c for c in text[:300] if c.isprintable())
