"""Bearer tokens from a file.

Rule: a token's SHA-256 is all that is kept of it; tokens are long random strings, so that
nothing slower is needed.  A line is ``name token`` or ``name sha256:hex``::

    # for the build machines
    ci      sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
    laptop  mF_9.B5f-4.1JqM6aYhBUYaPVZ2SpJ
"""

from __future__ import annotations

import hashlib
import re

MIN_LENGTH = 16
"""Characters of a token; whatever is shorter can be guessed."""

_NAME = re.compile(r"[^\s\x00-\x1f\x7f#]{1,255}")
_HASHED = re.compile(r"sha256:([0-9a-fA-F]{64})")
_TOKEN = re.compile(r"[\x21-\x7e]+")


class Tokens:
    """Names by their token's hash."""

    def __init__(self, names: dict[bytes, str]) -> None:
        self._names = names

    def __repr__(self) -> str:
        return f"<{len(self._names)} tokens>"

    def name(self, token: str) -> str | None:
        """Whose token it is.

        What the time of a look-up tells is of the hash, from which nobody can work towards
        a token.
        """
        return self._names.get(hashlib.sha256(token.encode()).digest())


def parse(text: str) -> Tokens:
    """Raises ValueError naming the line."""
    names: dict[bytes, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) != 2 or not _NAME.fullmatch(words[0]):
            raise ValueError(f"line {number}: expected a name and a token, or sha256:… of one")
        name, token = words
        hashed = _HASHED.fullmatch(token)
        if hashed is not None:
            key = bytes.fromhex(hashed[1])
        elif len(token) < MIN_LENGTH or not _TOKEN.fullmatch(token) or token.startswith("sha256:"):
            raise ValueError(
                f"line {number}: expected a token of at least {MIN_LENGTH} characters of ASCII, "
                "or sha256: and 64 hex digits"
            )
        else:
            key = hashlib.sha256(token.encode()).digest()
        if names.setdefault(key, name) != name:
            raise ValueError(f"line {number}: this token is another name's as well")
    return Tokens(names)
