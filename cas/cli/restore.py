"""``cas restore``: what an earlier CI job kept."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from cas.cli import display, remote
from cas.cli.save import add_key_files, whole_key

if TYPE_CHECKING:
    from cas.cli.remote import Commands
    from cas.client.client import AsyncClient

DESCRIPTION = """\
Brings back what `cas save` kept under a key; if there is no such save, the newest one whose key
begins with a fallback, the first of them that has any. Only what differs is fetched.

  cas restore pip-linux --key-files 'requirements*.txt' --fallback pip-linux-

Prints the key that was restored. Exit code 0 if there was one, 3 if not. In GitHub Actions it
sets the outputs cache-hit (true for the exact key), cache-matched-key and cache-primary-key.
"""


def add(commands: Commands) -> None:
    """Adds the command's parser."""
    parser = remote.add_parser(commands, "restore", "bring back what was saved", DESCRIPTION, run)
    parser.add_argument("key", metavar="KEY", help="as it was saved")
    parser.add_argument(
        "--fallback",
        nargs="+",
        action="extend",
        default=[],
        metavar="PREFIX",
        help="take the newest save whose key begins so",
    )
    parser.add_argument("--into", metavar="DIR", type=Path, help="put everything below DIR instead")
    parser.add_argument(
        "--delete", action="store_true", help="remove what a saved directory does not have"
    )
    add_key_files(parser)
    remote.flags(parser)


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Restores; the exit code."""
    return remote.execute(options, environ, lambda client: _restore(client, options, environ))


async def _restore(
    client: AsyncClient, options: argparse.Namespace, environ: Mapping[str, str]
) -> int:
    from cas.client.saves import restore
    from cas.client.statcache import default_path

    key = whole_key(options)
    began = time.monotonic()
    async with display.shown(options, "restoring") as progress:
        done = await restore(
            client,
            key,
            options.fallback,
            base=Path(os.getcwd()),
            home=Path.home(),
            into=options.into,
            delete=options.delete,
            cache=default_path(),
            progress=progress,
        )
    exact = done is not None and done.exact
    matched = done.key if done is not None else ""
    remote.tell_github(environ, cache_hit=exact, cache_matched_key=matched, cache_primary_key=key)
    if not options.quiet:
        said = (
            f"nothing saved under {key}"
            + (f" or beginning with {', '.join(options.fallback)}" if options.fallback else "")
            if done is None
            else f"restored {done.key}: {done.files} files, {display.size(done.bytes)}; fetched "
            f"{display.size(done.got_bytes)} in {time.monotonic() - began:.1f} s"
        )
        print(said, file=sys.stderr)
    remote.say(
        options,
        [matched] if matched else [],
        key=key,
        matched=matched or None,
        exact=exact,
        files=done.files if done else 0,
        bytes=done.bytes if done else 0,
        written=done.written if done else 0,
        got_bytes=done.got_bytes if done else 0,
        paths=list(done.paths) if done else [],
    )
    return 0 if done is not None else remote.ABSENT
