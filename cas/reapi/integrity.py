"""Subresource integrity: checksums as the qualifier ``checksum.sri`` has them.

Rule: pure.  Of several, those of the strongest function count, and one of them has to be right
(W3C, Subresource Integrity, 3.3.4).  Beside its functions those that Bazel writes are known.
"""

from __future__ import annotations

import binascii
from typing import NamedTuple

from cas.digest import BLAKE3, SHA1, SHA256, SHA384, SHA512, Function, shorten
from cas.errors import InvalidArgument

_STRENGTH = {"sha1": 0, "sha256": 1, "blake3": 1, "sha384": 2, "sha512": 3}
_FUNCTIONS = {f.name: f for f in (SHA1, SHA256, BLAKE3, SHA384, SHA512)}


class Checksum(NamedTuple):
    """What content may hash to."""

    function: Function
    hash: bytes


def parse(text: str) -> list[Checksum]:
    """Reads ``sha256-BASE64``, or several with spaces between; raises InvalidArgument."""
    found: list[Checksum] = []
    for word in text.split():
        name, dash, encoded = word.partition("-")
        function = _FUNCTIONS.get(name)
        # What follows a question mark is for options, of which there are none yet.
        raw = _decoded(encoded.partition("?")[0])
        if function is None or not dash or len(raw) != function.length:
            raise InvalidArgument(
                f"checksum {shorten(word)} is none; expected FUNCTION-BASE64 of "
                f"{', '.join(_FUNCTIONS)}"
            )
        found.append(Checksum(function, raw))
    if not found:
        raise InvalidArgument(f"checksum {shorten(text)} is empty; expected sha256-BASE64")
    strongest = max(_STRENGTH[checksum.function.name] for checksum in found)
    return [one for one in found if _STRENGTH[one.function.name] == strongest]


def _decoded(encoded: str) -> bytes:
    try:
        return binascii.a2b_base64(encoded.encode("ascii"), strict_mode=True)
    except (binascii.Error, UnicodeEncodeError):
        return b""
