"""``cas gocacheprog``: a remote as Go's build cache."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from cas.cli import remote

if TYPE_CHECKING:
    from cas.cli.remote import Commands
    from cas.client.client import AsyncClient

DESCRIPTION = """\
Lets the go command (1.24 or later) keep its build cache in a remote. The go command starts it:

  export CAS_REMOTE=grpc://cache:8980
  GOCACHEPROG='cas gocacheprog' go build ./...

A remote that fails is a cache that misses: the build goes on. With --verbose it tells on stderr how
many entries came from where.
"""


def add(commands: Commands) -> None:
    """Adds the command's parser."""
    parser = remote.add_parser(commands, "gocacheprog", "be Go's build cache", DESCRIPTION, run)
    parser.add_argument(
        "--dir",
        metavar="DIR",
        type=Path,
        help="where the files are that Go reads (default: below XDG's cache directory)",
    )
    parser.add_argument("--verbose", action="store_true", help="tell what was found where")
    remote.flags(parser)


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Answers until the go command closes; the exit code."""
    return remote.execute(options, environ, lambda client: _serve(client, options))


async def _serve(client: AsyncClient, options: argparse.Namespace) -> int:
    from cas.client.gocache import Disk, Program
    from cas.client.retry import Retry
    from cas.client.statcache import cache_directory

    # A build waits for every answer: better a miss than a long wait.
    client.retry = Retry(attempts=3, first=0.1, longest=0.5)
    out = sys.stdout.buffer

    def answer(line: bytes) -> None:
        out.write(line)
        out.flush()

    disk = Disk((options.dir or cache_directory() / "go").absolute())
    program = Program(client, disk, sys.stdin.buffer, answer)
    await program.run()
    counts = program.counts
    if counts.failed:
        print(f"cas: built without the remote cache: {counts.failed}", file=sys.stderr)
    if options.verbose:
        print(
            f"cas: {counts.gets} asked, {counts.local} here, {counts.remote} from the remote; "
            f"{counts.puts} made, {counts.uploaded} sent",
            file=sys.stderr,
        )
    return 0
