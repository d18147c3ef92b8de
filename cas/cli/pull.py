"""``cas pull``: a directory out of a remote."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from cas.cli import display, remote
from cas.errors import NotFound

if TYPE_CHECKING:
    from cas.cli.remote import Commands
    from cas.client.client import AsyncClient
    from cas.digest import Digest

DESCRIPTION = """\
Makes DIR hold the directory that `cas push` stored, or any REAPI Directory. Only what differs is
fetched and written, each file whole or not at all, and nothing outside of DIR is touched. Files
that are not part of it stay, unless --delete is given.

  cas pull --remote grpc://cache:8980 HASH/SIZE dist
"""


def add(commands: Commands) -> None:
    """Adds the command's parser."""
    parser = remote.add_parser(commands, "pull", "fetch a directory", DESCRIPTION, run)
    parser.add_argument("digest", metavar="DIGEST", help="HASH/SIZE, as push printed it")
    parser.add_argument("directory", metavar="DIR", type=Path)
    parser.add_argument("--delete", action="store_true", help="remove what is not part of it")
    parser.add_argument(
        "--links",
        choices=("hard", "reflink"),
        help="keep the blobs in a local cache and link them from there; hard links share their "
        "content with the cache and with each other",
    )
    parser.add_argument(
        "--blob-cache", metavar="DIR", type=Path, help="where that is (default: below XDG's)"
    )
    remote.flags(parser)


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Pulls; the exit code."""
    digest = remote.digest(options.digest)
    return remote.execute(options, environ, lambda client: _pull(client, options, digest))


async def _pull(client: AsyncClient, options: argparse.Namespace, digest: Digest) -> int:
    from cas.client.blobcache import BlobCache
    from cas.client.pull import pull_tree
    from cas.client.statcache import cache_directory, default_path

    links = None
    if options.links:
        links = BlobCache(options.blob_cache or cache_directory() / "blobs", options.links)
    began = time.monotonic()
    try:
        async with display.shown(options, "pulling") as progress:
            done = await pull_tree(
                client,
                digest,
                options.directory,
                delete=options.delete,
                cache=default_path(),
                links=links,
                progress=progress,
            )
    except NotFound as error:
        print(f"cas: {remote.explained(error, str(client.remote))}", file=sys.stderr)
        return remote.ABSENT
    seconds = time.monotonic() - began
    if not options.quiet:
        print(
            f"{done.files} files, {display.size(done.bytes)}; {done.written} differed, "
            f"{display.size(done.got_bytes)} fetched, in {seconds:.1f} s",
            file=sys.stderr,
        )
    remote.say(
        options,
        [],
        directory=str(options.directory),
        files=done.files,
        bytes=done.bytes,
        written=done.written,
        removed=done.removed,
        got_blobs=done.got_blobs,
        got_bytes=done.got_bytes,
        seconds=round(seconds, 3),
    )
    return 0
