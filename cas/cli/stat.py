"""``cas stat``: what a store holds."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from contextlib import closing
from typing import TYPE_CHECKING

from cas.cli import store
from cas.cli.progress import Progress
from cas.store import directory
from cas.store.files import Files

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

    from cas.store.stat import Amount, Stat

DESCRIPTION = """\
Counts what a store holds: blobs, action results, unfinished uploads, quarantine, the index, how
old entries are, and how often what clients asked for was there (as of a minute ago, for a server
that runs meanwhile).

Exit codes: 0 done, 1 not done, 2 a wrong option.
"""


def add(commands: Commands) -> None:
    """Adds the command's parser."""
    parser = store.add_parser(commands, "stat", "tell what a store holds", DESCRIPTION)
    parser.add_argument("--json", action="store_true", help="print one JSON object; sizes in bytes")
    parser.set_defaults(run=run, flags=["--dir", "--config", "--json"])


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Counts; the exit code."""
    from cas.store import opening
    from cas.store.stat import take

    layout = store.layout(options, environ)
    directory.check_store(layout)
    progress = Progress()
    with closing(opening.open_index(layout, Files(), strict=False)) as index:
        stat = take(layout, index, now=time.time(), progress=progress)
    progress.clear()
    if options.json:
        print(json.dumps(stat.as_json()))
    else:
        _print(stat)
    return 0


def _print(stat: Stat) -> None:
    print(f"{stat.directory} ({stat.format})")
    amounts = {
        "blobs in the index": stat.inline_blobs,
        "blobs in files": stat.file_blobs,
        "in files as zstd": stat.packed_blobs,
        "in index as zstd": stat.packed_inline_blobs,
        "action results": stat.actions,
        "values": stat.values,
        "unfinished uploads": stat.uploads,
        "in quarantine": stat.quarantine,
        "not upstream yet": stat.unsent,
    }
    for name, amount in amounts.items():
        print(f"  {name:20}{_amount(amount)}")
    if stat.packed_content_bytes:
        content = store.size(stat.packed_content_bytes)
        print(f"  {'zstd decoded':20}{'':>14}{content:>14}")
    used = store.size(stat.index_used_bytes)
    print(f"  {'index on disk':20}{'':>14}{store.size(stat.index_bytes):>14} ({used} used)")
    for name, kind in (("action results", "action"), ("values", "value")):
        rate = stat.hit_rate(kind)
        if rate is not None and stat.lookups is not None and stat.lookups_since is not None:
            asked = stat.lookups[f"{kind}_hits"] + stat.lookups[f"{kind}_misses"]
            day = time.strftime("%Y-%m-%d", time.localtime(stat.lookups_since))
            print(f"  {name + ' found':20}{rate:>14.1%} of {asked:,} asked for since {day}")
    for title, classes in (("last used", stat.last_used), ("written", stat.written)):
        print(f"{title} less than … ago")
        for name, amount in classes.items():
            print(f"  {name:20}{_amount(amount)}")


def _amount(amount: Amount) -> str:
    return f"{amount.count:>14,}{store.size(amount.bytes):>14}"
