"""``cas has``: which blobs a remote has."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING

from cas.cli import remote

if TYPE_CHECKING:
    from cas.cli.remote import Commands
    from cas.client.client import AsyncClient
    from cas.digest import Digest

DESCRIPTION = """\
Asks whether the remote has blobs, and prints those that are missing, one a line. Exit code 0 if
it has all of them, 3 if not.

  cas has --remote grpc://cache:8980 HASH/SIZE || echo gone
"""


def add(commands: Commands) -> None:
    """Adds the command's parser."""
    parser = remote.add_parser(commands, "has", "ask for blobs", DESCRIPTION, run)
    parser.add_argument("digests", nargs="+", metavar="DIGEST", help="HASH/SIZE")
    remote.flags(parser)


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Asks; the exit code."""
    digests = [remote.digest(text) for text in options.digests]
    return remote.execute(options, environ, lambda client: _has(client, options, digests))


async def _has(client: AsyncClient, options: argparse.Namespace, digests: list[Digest]) -> int:
    missing = await client.find_missing(digests)
    lost = {digest.key for digest in missing}
    remote.say(
        options,
        [str(digest) for digest in missing],
        missing=[str(digest) for digest in missing],
        present=[str(digest) for digest in digests if digest.key not in lost],
    )
    return remote.ABSENT if missing else 0
