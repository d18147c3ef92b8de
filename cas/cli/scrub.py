"""``cas scrub``: everything read again and compared with its digest."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from typing import TYPE_CHECKING

from cas import log
from cas.cli import store
from cas.cli.progress import Progress
from cas.errors import ConfigError
from cas.options import parse_size
from cas.store import directory
from cas.store.files import Files

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

    from cas.store.scrub import Totals

DESCRIPTION = """\
Reads everything that is stored and compares it with its digest; a server may run meanwhile. What
is bad is dropped, so that clients find it missing and send it again; its bytes are kept in
DIR/quarantine. Action results have no digest: of them it is checked that they can be read.

Exit codes: 0 all is well, 1 something was bad, or not all could be read, 2 a wrong option.
"""

_SCALE = 10_000


def add(commands: Commands) -> None:
    """Adds the command's parser."""
    parser = store.add_parser(commands, "scrub", "verify everything that is stored", DESCRIPTION)
    parser.add_argument(
        "--rate", metavar="SIZE", help="read at most so many bytes a second (default: no limit)"
    )
    parser.set_defaults(run=run, flags=["--dir", "--config", "--rate"])


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Scrubs once; the exit code."""
    from cas.store import opening, scrub

    rate = _rate(options.rate)
    layout = store.layout(options, environ)
    directory.check_store(layout)
    log.configure("text", "critical")
    files = Files()
    progress = Progress()
    totals = scrub.Totals()
    began = time.monotonic()
    with closing(opening.open_index(layout, files)) as index:
        used = scrub.used(index)
        for piece in scrub.walk(layout, index, files):
            progress("scrub", int(scrub.position(piece.key, used) * _SCALE), _SCALE)
            totals.bytes += piece.bytes
            totals.entries += piece.ends
            if piece.bad:
                totals.bad += 1
                progress.clear()
                print(piece.bad)
            if rate and (ahead := began + totals.bytes / rate - time.monotonic()) > 0:
                time.sleep(ahead)
    progress.clear()
    _summarize(totals)
    return 1 if totals.bad else 0


def _summarize(totals: Totals) -> None:
    bad = f"{totals.bad:,} bad, dropped" if totals.bad else "all well"
    print(f"{totals.entries:,} entries, {store.size(totals.bytes)} read: {bad}")
    sys.stdout.flush()


def _rate(text: str | None) -> int:
    if text is None:
        return 0
    try:
        return parse_size(text)
    except ValueError as error:
        raise ConfigError(f"--rate: {text!r} is not a size") from error
