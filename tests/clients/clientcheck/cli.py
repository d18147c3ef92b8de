"""`tests/clients/run`: chooses the checks, gives each its bench, prints the verdicts. No
knowledge of any one tool.
"""

import argparse
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

from . import (
    bazel,
    buildgrid,
    buildstream,
    casd,
    ccache,
    gradle,
    moon,
    nx,
    sccache,
    server,
    turborepo,
)
from .check import Bench, Check
from .errors import CheckError, NotInstalled, NotServed, Skipped
from .install import install
from .process import Clock
from .tools import Tools, chosen_clients, tools_from

ROOT = Path(__file__).resolve().parents[3]

CHECKS: tuple[Check, ...] = (
    *bazel.checks(bazel.BAZEL4, units=40),
    bazel.http_check(bazel.BAZEL4, units=10),
    *bazel.checks(bazel.BAZEL2, units=20),
    *moon.CHECKS,
    *buildgrid.CHECKS,
    *casd.CHECKS,
    *buildstream.CHECKS,
    *ccache.CHECKS,
    *sccache.CHECKS,
    *turborepo.CHECKS,
    *nx.CHECKS,
    *gradle.CHECKS,
)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        clients = chosen_clients(options.client, os.environ)
    except ValueError as error:
        print(f"tests/clients/run: {error}", file=sys.stderr)
        return 2
    if options.empty and not (options.remote and options.prove):
        print("tests/clients/run: --empty needs both --remote and --prove", file=sys.stderr)
        return 2
    if options.remote and options.prove and not options.empty:
        print("tests/clients/run: --prove with --remote needs --empty", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, _end)
    os.nice(5)
    work = Path(tempfile.mkdtemp(prefix="cas-clients."))
    try:
        return _run(clients, options, work)
    except CheckError as error:
        _print("server", False, 0.0, str(error))
        print("0 passed, 1 failed")
        return 1
    except KeyboardInterrupt:
        print("tests/clients/run: interrupted", file=sys.stderr)
        return 130
    finally:
        if options.keep:
            print(f"kept {work}", file=sys.stderr)
        else:
            _remove(work)


def _run(clients: Sequence[str], options: argparse.Namespace, work: Path) -> int:
    tools = tools_from(os.environ)
    absent = _install(clients, tools)
    outcomes: list[bool | None] = []
    own: dict[str, list[str]] = {}
    with ExitStack() as stack:

        def start(name: str) -> tuple[str, str]:
            started = server.start(
                server.find_cas(ROOT), work, name, shlex.split(options.serve_args)
            )
            stack.callback(lambda: own.update({name: server.stop(started)}))
            return started.address, started.http

        fills = (options.remote, options.remote_http) if options.remote else start("server")
        served_by = fills
        if options.prove:
            empty = (options.empty, options.empty_http)
            served_by = empty if options.empty else start("empty-server")
        for check in CHECKS:
            if check.client in absent:
                _print(check.name, False, 0.0, absent[check.client])
                outcomes.append(False)
            elif check.client in clients:
                scratch = work / f"check{len(outcomes)}"
                scratch.mkdir()
                clock = Clock.of(check.seconds)
                grpc, http = zip(fills, served_by, strict=True)
                bench = Bench(scratch, *grpc, tools, clock, *http)
                outcomes.append(_verdict(check, bench, options.prove))
                if not options.keep:
                    _remove(scratch)
    # How an own server ends, and what it logged, counts as a check too.
    for name, wrong in own.items():
        said = "".join(f"\n    | {line}" for line in wrong[:20])
        _print(name, not wrong, 0.0, said or "logged no error, exited with 0 after SIGTERM")
        outcomes.append(not wrong)
    passed, failed, skipped = (sum(one is kind for one in outcomes) for kind in (True, False, None))
    print(f"{passed} passed, {failed} failed" + (f", {skipped} skipped" if skipped else ""))
    return 1 if failed else 0


def _install(clients: Sequence[str], tools: Tools) -> dict[str, str]:
    """Installs what is not there yet; returns, for each client that can't be had, why."""
    absent = {}
    for client in clients:
        try:
            install(client, tools)
        except NotInstalled as error:
            absent[client] = str(error)
    return absent


def _verdict(check: Check, bench: Bench, prove: bool) -> bool | None:
    """Carries the check out and prints its line; whether it passed, None for skipped.

    In prove mode a check passes if it is NotServed, and only then.
    """
    began = time.monotonic()
    outcome: bool | None
    try:
        if check.http and not (bench.fills_http and bench.served_http):
            raise Skipped("no HTTP front is named: --remote-http, --empty-http")
        said, outcome = check.carry_out(bench), not prove
        if prove:
            said = f"it passed, though nothing was cached: {said}"
    except NotServed as error:
        said, outcome = str(error), prove
        if prove:
            said = f"it fails when nothing was cached: {said.splitlines()[0]}"
    except Skipped as error:
        said, outcome = str(error), None
    except (CheckError, OSError) as error:
        said, outcome = str(error), False
    _print(check.name, outcome, time.monotonic() - began, said)
    return outcome


def _print(name: str, outcome: bool | None, seconds: float, said: str) -> None:
    word = {True: "passed", False: "FAILED", None: "skipped"}[outcome]
    print(f"{name:<14} {word:<7} {seconds:5.1f} s  {said}", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tests/clients/run", description="Real build tools against a cas server."
    )
    parser.add_argument("client", nargs="*", help="clients to run (default: $CLIENTS, else all)")
    parser.add_argument(
        "--remote", metavar="HOST:PORT", help="a server that runs already, instead of an own one"
    )
    parser.add_argument(
        "--remote-http",
        default="",
        metavar="HOST:PORT",
        help="with --remote: its HTTP front; without it, what needs one is skipped",
    )
    parser.add_argument(
        "--prove",
        action="store_true",
        help="serve the second half of each check from an empty server; each must notice",
    )
    parser.add_argument(
        "--empty", metavar="HOST:PORT", help="with --prove and --remote: the empty server"
    )
    parser.add_argument(
        "--empty-http", default="", metavar="HOST:PORT", help="with --empty: its HTTP front"
    )
    parser.add_argument(
        "--serve-args",
        default="",
        metavar="TEXT",
        help="further arguments for `cas serve`, such as '--engine=aio'",
    )
    parser.add_argument("--keep", action="store_true", help="keep the work directories")
    return parser


def _end(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _remove(path: Path) -> None:
    for folder, _, _ in os.walk(path):
        os.chmod(folder, 0o700)
    shutil.rmtree(path)
