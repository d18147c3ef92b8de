"""moon over gRPC and HTTP: tasks that ran and were uploaded must all be hydrated from the remote
in a fresh clone.

moon's own run report is the judge: a task's status there tells a remote hit from a local one.
"""

import json
import os
import uuid
from collections import Counter
from pathlib import Path

from .check import Bench, Check
from .errors import CheckError, NotServed, Skipped
from .probe import speaks_zstd
from .process import Finished, last_lines, must, run
from .tools import closed_environment
from .tree import difference, files, manifest

_SMALL_TASKS = 8
_TASKS = _SMALL_TASKS + 2

_MAKE = """\
set -eu
to=out/$1
mkdir -p "$to/a/b"
for n in 1 2 3 4 5 6 7 8 9 10 11 12; do head -c $((n * 4000)) /dev/urandom > "$to/random$n"; done
seq 1 30000 > "$to/squeezable"
date +%s%N > "$to/a/b/when"
true > "$to/nothing"
echo '#!/bin/sh' > "$to/go"
chmod 755 "$to/go"
echo "told-by-$1-$(cat seed)"
"""

_MAKE_LARGE = """\
set -eu
mkdir -p out/large
head -c 10000001 /dev/urandom > out/large/ten-mb
head -c 2500000 /dev/urandom > out/large/some-mb
{ seq 1 1500000; date +%s%N; } > out/large/numbers
"""

_MAKE_INDEX = """\
set -eu
mkdir -p out/index
find out -type f | sort | xargs sha256sum > out/index/sums
"""


def _check(bench: Bench, compression: str, api: str = "grpc") -> str:
    fills, served_by = bench.fills, bench.served_by
    if api == "http":
        fills, served_by = bench.fills_http, bench.served_http
    if compression == "zstd" and not speaks_zstd(bench.fills):
        raise Skipped("the server's capabilities name no zstd")
    origin = bench.work / "origin"
    seed = uuid.uuid4().hex
    _write_workspace(origin, seed)
    _git(bench, origin, "init", "-q", ".")
    _git(bench, origin, "add", "-A")
    _git(bench, origin, "commit", "-q", "-m", "Check clients")

    first = _run_moon(bench, origin, compression, f"{api}://{fills}")
    _quiet(first, "first")
    counts = _statuses(origin)
    if counts != {"passed": _TASKS}:
        raise CheckError(
            f"the first run should have passed {_TASKS} tasks: {counts}\n{last_lines(first.output)}"
        )
    made = manifest(origin / "app/out")
    if files(made) < _SMALL_TASKS * 16 + 4:
        raise CheckError(f"the first run made only {files(made)} files")

    clone = bench.work / "clone"
    _git(bench, bench.work, "clone", "-q", str(origin), str(clone))
    second = _run_moon(bench, clone, compression, f"{api}://{served_by}")
    again = _statuses(clone)
    if again != {"cached-from-remote": _TASKS}:
        raise NotServed(
            f"the second run should have had {_TASKS} tasks cached-from-remote: {again}"
        )
    _quiet(second, "second")
    differs = difference(made, manifest(clone / "app/out"))
    if differs:
        raise NotServed(f"outputs differ between the runs:\n{differs}")
    for number in range(1, _SMALL_TASKS + 1):
        if f"told-by-t{number}-{seed}" not in second.output:
            raise NotServed(f"the stdout of task t{number} was not replayed")
    return (
        f"{again['cached-from-remote']} of {_TASKS} tasks served, {files(made)} files identical, "
        f"ran in {first.seconds:.1f} s, then in {second.seconds:.1f} s"
    )


CHECKS = (
    Check("moon", "moon", 90, lambda bench: _check(bench, "none")),
    Check("moon[zstd]", "moon", 90, lambda bench: _check(bench, "zstd")),
    Check("moon[http]", "moon", 90, lambda bench: _check(bench, "none", "http"), http=True),
)


def _write_workspace(root: Path, seed: str) -> None:
    app = root / "app"
    app.mkdir(parents=True)
    tasks = {
        f"t{number}": {
            "command": f"sh make.sh t{number}",
            "inputs": ["make.sh", "seed"],
            "outputs": [f"out/t{number}"],
            "deps": [f"~:t{number // 2}"] if number > 1 else [],
        }
        for number in range(1, _SMALL_TASKS + 1)
    }
    tasks["large"] = {
        "command": "sh large.sh",
        "inputs": ["large.sh", "seed"],
        "outputs": ["out/large"],
        "deps": [],
    }
    tasks["index"] = {
        "command": "sh index.sh",
        "inputs": ["index.sh", "seed"],
        "outputs": ["out/index"],
        "deps": [f"~:{name}" for name in tasks],
    }
    # JSON is YAML too.
    (app / "moon.yml").write_text(json.dumps({"language": "unknown", "tasks": tasks}, indent=2))
    (app / "make.sh").write_text(_MAKE)
    (app / "large.sh").write_text(_MAKE_LARGE)
    (app / "index.sh").write_text(_MAKE_INDEX)
    (app / "seed").write_text(seed + "\n")
    (root / ".gitignore").write_text("/.moon\n/app/out\n/home\n")


def _write_settings(root: Path, compression: str, host: str) -> None:
    settings = {
        "projects": {"app": "app"},
        "telemetry": False,
        "daemon": False,
        "vcs": {"client": "git", "defaultBranch": "main"},
        "remote": {
            "api": host.partition(":")[0],
            "host": host,
            "cache": {"compression": compression, "verifyIntegrity": True},
        },
    }
    (root / ".moon").mkdir()
    (root / ".moon/workspace.yml").write_text(json.dumps(settings, indent=2))


def _run_moon(bench: Bench, workspace: Path, compression: str, host: str) -> Finished:
    _write_settings(workspace, compression, host)
    home = workspace / "home"
    home.mkdir()
    env = closed_environment(home) | {
        "PROTO_OFFLINE": "1",
        "MOON_DAEMON": "false",
        "MOON_TELEMETRY": "false",
    }
    argv: list[str | Path] = [bench.tools.moon, "run", "app:index", "--log", "debug"]
    log = bench.work / f"{workspace.name}.log"
    return must(
        run(argv, cwd=workspace, env=env, log=log, clock=bench.clock),
        f"moon in the {workspace.name}",
    )


def _statuses(workspace: Path) -> dict[str, int]:
    """How many tasks ended in which status, by moon's report of its last run."""
    report = workspace / ".moon/cache/runReport.json"
    if not report.exists():
        raise CheckError(f"moon left no {report.relative_to(workspace)}")
    actions = json.loads(report.read_text())["actions"]
    return dict(
        Counter(str(one["status"]) for one in actions if one["node"]["action"] == "run-task")
    )


def _quiet(done: Finished, which: str) -> None:
    """Raises CheckError if moon's log has a warning or an error: each could be a cache failure
    that it survived.
    """
    lines = [line for line in done.output.splitlines() if "WARN" in line or "ERROR" in line]
    if lines:
        raise CheckError(f"moon warned in the {which} run:\n{last_lines(os.linesep.join(lines))}")


def _git(bench: Bench, cwd: Path, *words: str) -> None:
    settings = {
        "user.name": "clientcheck",
        "user.email": "clientcheck@localhost",
        "init.defaultBranch": "main",
    }
    options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    argv = ["git", *options, *words]
    log = bench.work / "git.log"
    must(
        run(argv, cwd=cwd, env=closed_environment(bench.work), log=log, clock=bench.clock),
        f"git {words[0]}",
    )
