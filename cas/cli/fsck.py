"""``cas fsck``: the index against the files, and repairs."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import TYPE_CHECKING

from cas.cli import store
from cas.cli.progress import Progress
from cas.errors import DataLoss
from cas.store import directory
from cas.store.files import Files

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

    from cas.store.fsck import Finding, Report
    from cas.store.layout import Layout

DESCRIPTION = """\
Compares the index with the files, both ways, and tells what is wrong; with --repair, mends it.
No server may run on the directory. Blobs' bytes are not read: `cas scrub` does that.

With --forget-unsent, nothing waits any more to be sent upstream: for a store whose upstream is
gone for good. What waited stays here, and may be evicted as all else.

Prints one line for each thing found, then a summary.

Exit codes: 0 nothing wrong is left, 1 something is, or the check could not be made, 2 a wrong
option.
"""


def add(commands: Commands) -> None:
    """Adds the command's parser."""
    parser = store.add_parser(commands, "fsck", "check a store, and repair it", DESCRIPTION)
    parser.add_argument("--repair", action="store_true", help="mend what is found")
    parser.add_argument(
        "--forget-unsent", action="store_true", help="drop the queue of what is to go upstream"
    )
    parser.set_defaults(run=run, flags=["--dir", "--config", "--repair", "--forget-unsent"])


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Checks; the exit code."""
    layout = store.layout(options, environ)
    with closing(directory.occupy(layout.root)):
        return _apart(lambda: _check(layout, options.repair, options.forget_unsent))


def _check(layout: Layout, repair: bool, forget_unsent: bool) -> int:
    # Not before the fork: LMDB's environments belong to the process that opened them.
    from cas.index import unsent
    from cas.store import fsck, opening

    files = Files()
    progress = Progress()

    def tell(finding: Finding) -> None:
        progress.clear()
        print(f"{finding.kind}: {finding.what}" + (finding.repair and f" ({finding.repair})"))

    with closing(opening.open_index(layout, files)) as index:
        forgotten = unsent.forget(index) if forget_unsent else None
        report = fsck.check(
            layout, index, files, repair=repair, now=time.time(), tell=tell, progress=progress
        )
    progress.clear()
    if forgotten is not None:
        print(f"{forgotten:,} writes will not be sent upstream")
    _summarize(report)
    return 1 if report.left else 0


def _summarize(report: Report) -> None:
    print(
        f"{report.entries:,} entries, {report.files:,} files ({store.size(report.file_bytes)}), "
        f"{report.uploads:,} uploads ({store.size(report.upload_bytes)}), "
        f"{report.quarantined:,} in quarantine ({store.size(report.quarantined_bytes)})"
    )
    if not report.found:
        print("clean")
        return
    kinds = ", ".join(f"{count:,} × {kind}" for kind, count in sorted(report.found.items()))
    left = f"{report.left:,} left" if report.left else "all repaired"
    print(f"{report.found.total():,} wrong ({kinds}); {left}")


def _apart(work: Callable[[], int]) -> int:
    """Runs `work` in a process of its own: a damaged index may end the one that reads it.

    Raises DataLoss when it did.
    """
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        code = 1
        try:
            from cas.cli import app

            code = app.guarded(work)
            sys.stdout.flush()
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code < 0:
        raise DataLoss(
            f"the index is damaged: reading it ended in {signal.Signals(-code).name}; "
            "`cas reindex` makes it anew from the blobs' files"
        )
    return code
