"""What a supervisor and its worker say to each other: lines over two pipes.

Rule: pure; values to bytes and back.  To the worker's stdin goes one line with its `Task`,
later `DRAIN`; the end of that pipe means that the supervisor is gone.  From the worker come
`Event` lines.  Nothing is handed over by arguments or environment, which others can read.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

from cas import config
from cas.config import Config

DRAIN = b"drain\n"

Role = Literal["grpc", "http", "janitor"]
"""What a worker is for.  Its module: `cas.server.child.MODULES`."""

READY = "ready"
"""The worker serves."""
BEAT = "beat"
"""The worker's own loop, or its engine's, went on."""
FATAL = "fatal"
"""The worker cannot serve; `Event.detail` says why."""


@dataclass(frozen=True, slots=True)
class Task:
    """What one worker is to do."""

    role: Role
    number: int
    """Which of the supervisor's workers of this role it is, from 0."""
    supervisor: int
    """The supervisor's process id."""
    addresses: tuple[str, ...]
    """Where to listen, as gRPC writes it: numeric hosts, no port 0.  None for a janitor."""
    config: Config
    board: int
    """The descriptor of the memory that all processes count in (`cas.metrics.board`)."""
    sheet: int
    """Which part of it is this worker's."""
    node: str = ""
    """The server's name to other nodes, new at each start."""


@dataclass(frozen=True, slots=True)
class Event:
    """One line from a worker."""

    kind: str
    detail: str = ""


def encode_task(task: Task) -> bytes:
    """`task` as one line."""
    return _line(
        {
            "role": task.role,
            "number": task.number,
            "supervisor": task.supervisor,
            "addresses": task.addresses,
            "config": config.to_wire(task.config),
            "board": task.board,
            "sheet": task.sheet,
            "node": task.node,
        }
    )


def decode_task(line: bytes) -> Task:
    """The task that `encode_task` was given."""
    fields = json.loads(line)
    return Task(
        role=fields["role"],
        number=fields["number"],
        supervisor=fields["supervisor"],
        addresses=tuple(fields["addresses"]),
        config=config.from_wire(fields["config"]),
        board=fields["board"],
        sheet=fields["sheet"],
        node=fields["node"],
    )


def encode_event(event: Event) -> bytes:
    """`event` as one line."""
    return _line([event.kind, event.detail])


def decode_event(line: bytes) -> Event:
    """The event that `encode_event` was given."""
    kind, detail = json.loads(line)
    return Event(kind, detail)


def _line(value: object) -> bytes:
    # JSON in ASCII holds no line break of its own.
    return json.dumps(value).encode("ascii") + b"\n"
