"""``cas reindex``: the index made anew from the blobs' files."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from contextlib import closing
from typing import TYPE_CHECKING

from cas.cli import store
from cas.cli.progress import Progress
from cas.store import directory
from cas.store.files import Files
from cas.store.layout import Layout

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

DESCRIPTION = """\
Makes the index anew from the blobs' files, each of which is read and verified; for an index that
is lost or damaged. No server may run on the directory. The old index is kept beside the new one,
under a name that is printed.

Blobs up to --inline-threshold and all action results were in the old index only: they go with
it, and clients make them again.

Exit codes: 0 done, 1 not done, 2 a wrong option.
"""


def add(commands: Commands) -> None:
    """Adds the command's parser."""
    parser = store.add_parser(
        commands, "reindex", "rebuild a lost or damaged index from the files", DESCRIPTION
    )
    parser.set_defaults(run=run, flags=["--dir", "--config"])


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Rebuilds; the exit code."""
    from cas.store.reindex import reindex

    loaded = store.load(options, environ)
    layout = Layout(loaded.dir)
    unsent = bool(loaded.upstream) and loaded.upstream_writes == "back"
    progress = Progress()
    with closing(directory.occupy(layout.root)):
        rebuilt = reindex(layout, Files(), now=time.time(), progress=progress, unsent=unsent)
    progress.clear()
    print(f"{rebuilt.blobs:,} blobs ({store.size(rebuilt.blob_bytes)}) are in the new index")
    if rebuilt.refused:
        print(f"{rebuilt.refused:,} files were bad, or second copies, and are in quarantine")
    if rebuilt.kept is not None:
        print(f"the old index is {rebuilt.kept}; remove it when you like")
    if unsent:
        print("all of them wait to be sent upstream, since some may have")
    print("small blobs (kept inline) and action results went with the old index")
    return 0
