"""``cas admin upstream``: what an operator does with the object store behind servers.

Rule: speaks to the object store itself, with a server's own options for it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from cas import config, log
from cas.cli import store
from cas.errors import CasError, ConfigError

if TYPE_CHECKING:
    from cas.cli.remote import Commands

SCRUB = """\
Reads blobs from the object store, chosen at random, and compares each with the hash that its name
is. What is bad is moved below v1/quarantine/, so that nodes find it missing and clients send it
again. Takes the options and credentials that servers have for it, and reads what has one of the
digest functions that the server's file names.

Exit codes: 0 all is well, 1 something was bad, or not all could be read, 2 a wrong option.
"""

SAMPLE = 1_000


def add(commands: Commands) -> None:
    """Adds the command's parser and the one below it."""
    parser = commands.add_parser("upstream", help="look after the object store")
    below = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    scrub = below.add_parser(
        "scrub",
        help="verify what is kept there",
        description=SCRUB,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    scrub.add_argument(
        "--config",
        metavar="FILE.toml",
        default=argparse.SUPPRESS,
        help="read options from the server's file (environment: CAS_CONFIG)",
    )
    for option in _options():
        scrub.add_argument(
            option.flag,
            dest=option.name,
            metavar=option.kind.placeholder,
            default=argparse.SUPPRESS,
            help=f"{option.help} (default: {option.default_text})",
        )
    scrub.add_argument(
        "--sample",
        metavar="N",
        default=str(SAMPLE),
        help=f"blobs to read; 0 is all (default: {SAMPLE})",
    )
    flags = ["--config", *(option.flag for option in _options()), "--sample"]
    scrub.set_defaults(run=_scrub, flags=flags)


def _options() -> list[config.Option]:
    return [option for option in config.options() if option.name.startswith("upstream")]


def _scrub(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    import asyncio

    from cas.upstream.leaving import leave

    names = {"config", *(option.name for option in _options())}
    flags = {name: value for name, value in vars(options).items() if name in names}
    loaded = config.load(flags, environ)
    if not options.sample.isascii() or not options.sample.isdigit():
        raise ConfigError(f"--sample: {options.sample!r} is not a whole number of at least 0")
    if not loaded.upstream:
        raise ConfigError(
            "upstream is none: no object store is named, by flag, environment or file"
        )
    if config.is_server(loaded.upstream):
        raise ConfigError(
            f"upstream {loaded.upstream} is a server, which verifies what it keeps itself; "
            "expected an object store"
        )
    log.configure("text", "critical")
    try:
        code = asyncio.run(_scrubbed(loaded, int(options.sample)))
    except CasError as error:
        print("cas:", error, file=sys.stderr)
        code = 1
    leave(code)


async def _scrubbed(loaded: config.Config, sample: int) -> int:
    import random

    from cas.server import stores
    from cas.upstream.asking import Asking
    from cas.upstream.checking import scrub

    asking = Asking(stores.objects_of(loaded), stores.patience(loaded))
    functions = loaded.digest_functions.all
    blobs = size = bad = 0
    async for checked in scrub(asking, sample, random.Random(), functions):
        blobs += 1
        size += checked.size
        if not checked.is_right:
            bad += 1
            print(f"bad: {checked.key}")
    told = f"{bad:,} bad, moved to quarantine" if bad else "all well"
    print(f"{blobs:,} blobs, {store.size(size)} read: {told}")
    return 1 if bad else 0
