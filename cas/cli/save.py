"""``cas save``: what a CI job keeps for the next one."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from cas.cli import display, remote

if TYPE_CHECKING:
    from cas.cli.remote import Commands
    from cas.client.client import AsyncClient

DESCRIPTION = """\
Keeps files and directories under a key, for `cas restore`. A key that exists is left as it is.
Paths below the working directory, or below the home directory, come back to the same place
there. Everything is shared with whatever else the remote holds: what it has is not sent.

  cas save pip-linux --key-files 'requirements*.txt' ~/.cache/pip .venv

Prints the key, with the hash of the key files. In GitHub Actions it sets the outputs cache-key and
cache-saved.
"""


def add(commands: Commands) -> None:
    """Adds the command's parser."""
    parser = remote.add_parser(commands, "save", "keep paths for later runs", DESCRIPTION, run)
    parser.add_argument("key", metavar="KEY", help="any printable name")
    parser.add_argument("paths", nargs="+", metavar="PATH", help="file or directory")
    add_key_files(parser)
    remote.flags(parser)


def add_key_files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--key-files",
        action="append",
        default=[],
        metavar="PATTERN",
        help="add a hash of the files that match to the key (** for any depth); repeatable",
    )


def whole_key(options: argparse.Namespace) -> str:
    """The key with the hash of its files."""
    from cas.client.saves import key_of_files

    if not options.key_files:
        return str(options.key)
    hashed = key_of_files(options.key_files, Path.cwd())
    return f"{options.key.removesuffix('-')}-{hashed}"


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Saves; the exit code."""
    return remote.execute(options, environ, lambda client: _save(client, options, environ))


async def _save(
    client: AsyncClient, options: argparse.Namespace, environ: Mapping[str, str]
) -> int:
    from cas.client.saves import save
    from cas.client.statcache import default_path

    key = whole_key(options)
    began = time.monotonic()
    async with display.shown(options, "saving") as progress:
        done = await save(
            client,
            key,
            options.paths,
            base=Path(os.getcwd()),
            home=Path.home(),
            cache=default_path(),
            progress=progress,
        )
    for path in done.missing:
        print(f"cas: {path} does not exist; saved without it", file=sys.stderr)
    if not done.listed:
        print(
            "cas: the save is not on every list, so --fallback may miss it; its exact key works",
            file=sys.stderr,
        )
    if not options.quiet:
        said = (
            f"{key} exists already; nothing to do"
            if done.existed
            else f"saved {done.files} files, {display.size(done.bytes)}; sent "
            f"{display.size(done.sent_bytes)} in {time.monotonic() - began:.1f} s"
        )
        print(said, file=sys.stderr)
    remote.tell_github(environ, cache_key=key, cache_saved=not done.existed)
    remote.say(
        options,
        [key],
        key=key,
        saved=not done.existed,
        files=done.files,
        bytes=done.bytes,
        sent_blobs=done.sent_blobs,
        sent_bytes=done.sent_bytes,
        listed=done.listed,
        missing=list(done.missing),
    )
    return 0
