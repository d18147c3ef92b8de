"""Workloads: their names, and what each name means.

Rule: pure values and their parsing.  How a workload is driven lives in
`benchmarks.operations`.

Grammar: ``caps``, ``getac``, ``updateac``, ``fmb:COUNT``, ``read:BYTES``,
``write:BYTES[/KIB]`` (KiB of data in each message), ``batchread:COUNTxBYTES``,
``batchupdate:COUNTxBYTES``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

DEFAULT_MESSAGE_BYTES: Final = 64 * KIB
"""Data in one WriteRequest where the name does not say."""

DEFAULT_NAMES: Final = (
    "caps",
    "read:1024",
    "getac",
    "updateac",
    "write:1024",
    "fmb:1000",
    "batchupdate:100x1024",
    "batchread:100x1024",
    "read:1048576",
    "write:1048576",
    "write:1048576/16",
    "read:67108864",
    "write:67108864",
)


@dataclass(frozen=True, slots=True)
class Workload:
    """One kind of operation, repeated in a closed loop.

    `count` digests or blobs of `size` bytes in each operation; `message_bytes` of
    data in each message of a Write.
    """

    name: str
    kind: str
    count: int = 1
    size: int = 0
    message_bytes: int = DEFAULT_MESSAGE_BYTES

    @property
    def bytes_per_operation(self) -> int:
        return self.count * self.size

    @property
    def label(self) -> str:
        """What a reader of the table sees."""
        match self.kind:
            case "caps":
                return "GetCapabilities"
            case "getac":
                return "GetActionResult"
            case "updateac":
                return "UpdateActionResult"
            case "fmb":
                return f"FindMissing, {self.count:,} digests"
            case "read":
                return f"Read {size_text(self.size)}"
            case "write":
                return f"Write {size_text(self.size)}" + (
                    f", {size_text(self.message_bytes)} messages"
                    if self.size > self.message_bytes
                    else ""
                )
            case "batchread":
                return f"BatchRead {self.count} × {size_text(self.size)}"
            case _:
                return f"BatchUpdate {self.count} × {size_text(self.size)}"


_SHAPES: Final = {
    "caps": re.compile(r""),
    "getac": re.compile(r""),
    "updateac": re.compile(r""),
    "fmb": re.compile(r"(?P<count>\d+)"),
    "read": re.compile(r"(?P<size>\d+)"),
    "write": re.compile(r"(?P<size>\d+)(?:/(?P<kib>\d+))?"),
    "batchread": re.compile(r"(?P<count>\d+)x(?P<size>\d+)"),
    "batchupdate": re.compile(r"(?P<count>\d+)x(?P<size>\d+)"),
}


def parse(name: str) -> Workload:
    """The workload called `name`; raises ValueError saying what was expected."""
    kind, _, argument = name.partition(":")
    shape = _SHAPES.get(kind)
    if shape is None:
        raise ValueError(f"workload {name!r} is none of {', '.join(_SHAPES)}")
    match = shape.fullmatch(argument)
    if match is None or (argument == "" and ":" in name):
        example = next(known for known in DEFAULT_NAMES if known.partition(":")[0] == kind)
        raise ValueError(f"workload {name!r} is not written as {kind} is; try {example}")
    parts = {key: int(value) for key, value in match.groupdict().items() if value is not None}
    if 0 in parts.values():
        raise ValueError(f"workload {name!r}: counts and sizes start at 1")
    return Workload(
        name,
        kind,
        count=parts.get("count", 1),
        size=parts.get("size", 0),
        message_bytes=parts["kib"] * KIB if "kib" in parts else DEFAULT_MESSAGE_BYTES,
    )


def size_text(size: int) -> str:
    """``65536`` → ``64 KiB``; whole numbers of the largest unit that divides the size."""
    for unit, factor in (("GiB", KIB * MIB), ("MiB", MIB), ("KiB", KIB)):
        if size >= factor and size % factor == 0:
            return f"{size // factor} {unit}"
    return f"{size} B"


_UNITS: Final = {"": 1, "k": KIB, "m": MIB, "g": KIB * MIB}


def parse_size(text: str) -> int:
    """``10G``, ``512MiB`` or ``4096`` in bytes (powers of 1024); raises ValueError."""
    match = re.fullmatch(r"(\d+)\s*([kmg]?)(?:i?b)?", text.strip().lower())
    if match is None:
        raise ValueError(f"size {text!r} is not a number of bytes with an optional K, M or G")
    return int(match[1]) * _UNITS[match[2]]
