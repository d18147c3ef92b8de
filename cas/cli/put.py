"""``cas put``: files into a remote."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cas.cli import display, remote
from cas.errors import ConfigError

if TYPE_CHECKING:
    from cas.cli.remote import Commands
    from cas.client.client import AsyncClient
    from cas.digest import Function

DESCRIPTION = """\
Stores files, or standard input for -, and prints their digests, one a line, in order. What the
remote has already is not sent.

  cas put --remote grpc://cache:8980 build.tar.zst
  make report | cas put -
"""


def add(commands: Commands) -> None:
    """Adds the command's parser."""
    parser = remote.add_parser(commands, "put", "store files", DESCRIPTION, run)
    parser.add_argument("files", nargs="+", metavar="FILE", help="a file, or - for stdin")
    remote.add_function(parser)
    remote.flags(parser)


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Stores; the exit code."""
    with tempfile.NamedTemporaryFile(prefix="cas-") as spool:
        if "-" in options.files:
            shutil.copyfileobj(sys.stdin.buffer, spool, 1 << 20)
            spool.flush()
        paths = [Path(spool.name if name == "-" else name) for name in options.files]
        for path in paths:
            if path.is_dir():
                raise ConfigError(f"{path} is a directory; `cas push` stores those")
        function = remote.function(options, environ)
        work = partial(_put, options=options, paths=paths, function=function)
        return remote.execute(options, environ, work)


async def _put(
    client: AsyncClient, options: argparse.Namespace, paths: list[Path], function: Function
) -> int:
    from cas.client.source import of_file

    async with display.shown(options, "putting") as progress:
        blobs = [await client.run(of_file, path, function) for path in paths]
        progress.total = sum(blob.digest.size for blob in blobs)
        progress.files = len(blobs)
        missing = {digest.key for digest in await client.find_missing(b.digest for b in blobs)}
        todo = {blob.digest.key: blob for blob in blobs if blob.digest.key in missing}
        progress.move(sum(b.digest.size for b in blobs if b.digest.key not in missing))
        await client.send(list(todo.values()), progress.move)
    remote.say(
        options,
        [str(blob.digest) for blob in blobs],
        blobs=[
            {"file": name, "digest": str(blob.digest)}
            for name, blob in zip(options.files, blobs, strict=True)
        ],
        sent_blobs=client.tally.sent_blobs,
        sent_bytes=client.tally.sent_bytes,
    )
    return 0
