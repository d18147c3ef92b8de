"""``cas get``: one blob out of a remote."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from cas.cli import display, remote
from cas.errors import ConfigError, NotFound

if TYPE_CHECKING:
    from cas.cli.remote import Commands
    from cas.client.client import AsyncClient
    from cas.digest import Digest

DESCRIPTION = """\
Fetches a blob and verifies it. A file is whole or untouched. On standard output bytes go out as
they come: only the exit code tells that they were right.

  cas get --remote grpc://cache:8980 -o report.html HASH/SIZE
"""


def add(commands: Commands) -> None:
    """Adds the command's parser."""
    parser = remote.add_parser(commands, "get", "fetch a blob", DESCRIPTION, run)
    parser.add_argument("digest", metavar="DIGEST", help="HASH/SIZE")
    parser.add_argument("-o", "--output", metavar="FILE", help="write there; - is stdout")
    remote.flags(parser)


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Fetches; the exit code."""
    digest = remote.digest(options.digest)
    to_stdout = options.output in {None, "-"}
    if to_stdout and sys.stdout.isatty():
        raise ConfigError("a blob is not for a terminal; give -o FILE, or -o - into a pipe")
    if to_stdout and options.json:
        raise ConfigError("--json and the blob cannot both go to stdout; give -o FILE")
    return remote.execute(options, environ, lambda client: _get(client, options, digest))


async def _get(client: AsyncClient, options: argparse.Namespace, digest: Digest) -> int:
    async with display.shown(options, "getting") as progress:
        progress.total, progress.files = digest.size, 1
        try:
            if options.output in {None, "-"}:
                await client.get_stream(digest, sys.stdout.buffer.write, progress.move)
                sys.stdout.buffer.flush()
                return 0
            await client.get_file(digest, Path(options.output), progress.move)
        except NotFound as error:
            print(f"cas: {remote.explained(error, str(client.remote))}", file=sys.stderr)
            return remote.ABSENT
    remote.say(options, [], digest=str(digest), file=options.output, bytes=digest.size)
    return 0
