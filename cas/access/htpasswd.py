"""Users and passwords from a file as Apache's ``htpasswd -B`` writes it.

Rule: bcrypt only.  A check takes as long for a user who is not there as for one who is, and
tens to hundreds of milliseconds: it belongs on a thread that nobody waits for.
"""

from __future__ import annotations

import re

import bcrypt

MAX_COST = 16
"""Each more doubles the time of a check; 16 is several seconds."""

_HASH = re.compile(r"\$2[aby]\$([0-9]{2})\$[./A-Za-z0-9]{53}")
_NAME = re.compile(r"[^:\s\x00-\x1f\x7f]{1,255}")

_COUNTED = 72
"""Bytes of a password that bcrypt takes in; htpasswd drops what follows, as we do."""


class Users:
    """Hashes by name."""

    def __init__(self, hashes: dict[str, bytes]) -> None:
        self._hashes = hashes
        cost = max((int(known[4:6]) for known in hashes.values()), default=10)
        # Of no password: the time that it takes is all that is wanted of it.
        self._nobody = b"$2b$%02d$" % cost + b"." * 53

    def __repr__(self) -> str:
        return f"<{len(self._hashes)} users>"

    def verify(self, name: str, password: bytes) -> bool:
        """Whether `password` is that of the user `name`.  Slow."""
        known = self._hashes.get(name)
        try:
            same = bcrypt.checkpw(password[:_COUNTED], known or self._nobody)
        except ValueError:
            # A hash of the right form that bcrypt finds wrong all the same.
            return False
        return same and known is not None


def parse(text: str) -> Users:
    """Reads ``name:hash`` lines; blank ones and those that begin with # do not count.

    Raises ValueError naming the line.
    """
    hashes: dict[str, bytes] = {}
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        name, colon, known = line.partition(":")
        if not colon or not _NAME.fullmatch(name):
            raise ValueError(f"line {number}: expected name:hash")
        match = _HASH.fullmatch(known)
        if match is None:
            raise ValueError(
                f"line {number}: the hash is not bcrypt's, as htpasswd -B makes it ($2y$…)"
            )
        if not 4 <= int(match[1]) <= MAX_COST:
            raise ValueError(f"line {number}: bcrypt's cost is {match[1]}, expected 4 to 16")
        if name in hashes:
            raise ValueError(f"line {number}: this user was there before")
        hashes[name] = known.encode()
    return Users(hashes)
