"""``cas push``: a directory into a remote."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from cas.cli import display, remote

if TYPE_CHECKING:
    from cas.cli.remote import Commands
    from cas.client.client import AsyncClient
    from cas.digest import Function

DESCRIPTION = """\
Stores a directory and prints the digest of its root: `cas pull DIGEST DIR` brings it back. Modes,
symlinks and empty directories are kept; owners, times and what is no file are not. Files named
in .casignore (the syntax of .gitignore) are left out. What the remote has is not sent; files that
did not change since the last push are not read.

  cas push --remote grpc://cache:8980 dist
"""


def add(commands: Commands) -> None:
    """Adds the command's parser."""
    parser = remote.add_parser(commands, "push", "store a directory", DESCRIPTION, run)
    parser.add_argument("directory", metavar="DIR", type=Path)
    parser.add_argument(
        "--no-stat-cache", action="store_true", help="read every file, changed or not"
    )
    remote.add_function(parser)
    remote.flags(parser)


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Pushes; the exit code."""
    function = remote.function(options, environ)
    return remote.execute(options, environ, lambda client: _push(client, options, function))


async def _push(client: AsyncClient, options: argparse.Namespace, function: Function) -> int:
    from cas.client.push import push_tree
    from cas.client.statcache import default_path

    began = time.monotonic()
    async with display.shown(options, "pushing") as progress:
        done = await push_tree(
            client,
            options.directory,
            cache=None if options.no_stat_cache else default_path(),
            function=function,
            progress=progress,
        )
    seconds = time.monotonic() - began
    if not options.quiet:
        for path in done.skipped:
            print(f"left out, as it is no file, directory or symlink: {path}", file=sys.stderr)
        print(
            f"{done.files} files, {display.size(done.bytes)}; sent {done.sent_blobs} blobs, "
            f"{display.size(done.sent_bytes)}, in {seconds:.1f} s",
            file=sys.stderr,
        )
    remote.say(
        options,
        [str(done.root)],
        digest=str(done.root),
        files=done.files,
        directories=done.folders,
        symlinks=done.links,
        bytes=done.bytes,
        sent_blobs=done.sent_blobs,
        sent_bytes=done.sent_bytes,
        hashed_files=done.hashed,
        skipped=list(done.skipped),
        seconds=round(seconds, 3),
    )
    return 0
