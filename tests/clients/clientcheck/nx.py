"""Nx: tasks that ran once must all come from the remote cache in a clean copy, by its own word."""

import json
import re
import shutil
import uuid
from pathlib import Path

from .check import Bench, Check
from .errors import CheckError, NotServed
from .packages import NAMES, SCRIPT, outputs, words, write_packages
from .process import Finished, must, run
from .tools import closed_environment
from .tree import difference, files


def _check(bench: Bench) -> str:
    seed = uuid.uuid4().hex
    origin = bench.work / "origin"
    _write_workspace(bench, origin, seed)
    copy = bench.work / "copy"
    shutil.copytree(origin, copy, symlinks=True)

    first = _run(bench, origin, bench.fills_http)
    _quiet(first, "first")
    if _served(first.output):
        raise CheckError(f"the first run should have had nothing from a cache:\n{first.output}")
    for name in NAMES:
        if words(name, seed) not in first.output:
            raise CheckError(f"the first run lost what {name}'s task said:\n{first.output}")
    made = outputs(origin)
    if files(made) < 9 * len(NAMES):
        raise CheckError(f"the first run made only {files(made)} files")

    second = _run(bench, copy, bench.served_http)
    served = _served(second.output)
    if served != set(NAMES):
        raise NotServed(f"of {len(NAMES)} tasks Nx had {len(served)} from the remote cache")
    _quiet(second, "second")
    for name in NAMES:
        if words(name, seed) not in second.output:
            raise NotServed(f"what {name}'s task said was not repeated")
    differs = difference(made, outputs(copy))
    if differs:
        raise NotServed(f"outputs differ between the runs:\n{differs}")
    return (
        f"{len(served)} of {len(NAMES)} tasks served, {files(made)} files identical, "
        f"ran in {first.seconds:.1f} s, then in {second.seconds:.1f} s"
    )


CHECKS = (Check("nx", "nx", 120, _check, http=True),)


def _write_workspace(bench: Bench, root: Path, seed: str) -> None:
    write_packages(root, seed)
    for name in NAMES:
        target = {"command": f"{SCRIPT} {name}", "options": {"cwd": name}}
        project = {"name": name, "targets": {"build": target}}
        (root / name / "project.json").write_text(json.dumps(project))
    (root / "package.json").write_text(json.dumps({"name": "check", "private": True}))
    build = {
        "cache": True,
        "inputs": ["{projectRoot}/seed", "{projectRoot}/make.sh"],
        "outputs": ["{projectRoot}/out"],
    }
    settings = {"targetDefaults": {"build": build}, "analytics": False}
    (root / "nx.json").write_text(json.dumps(settings))
    (root / "node_modules").symlink_to(bench.tools.nx.parents[2])


def _run(bench: Bench, root: Path, address: str) -> Finished:
    home = bench.work / f"home-{root.name}"
    home.mkdir()
    env = closed_environment(home) | {
        "CI": "true",
        "NX_DAEMON": "false",
        "NX_NO_CLOUD": "true",
        "NX_TUI": "false",
        "NX_SELF_HOSTED_REMOTE_CACHE_SERVER": f"http://{address}",
        "NX_SELF_HOSTED_REMOTE_CACHE_ACCESS_TOKEN": "anything",
    }
    argv: list[str | Path] = [
        "node",
        bench.tools.nx,
        "run-many",
        "-t",
        "build",
        "--outputStyle=static",
    ]
    log = bench.work / f"{root.name}.log"
    return must(run(argv, cwd=root, env=env, log=log, clock=bench.clock), f"nx in the {root.name}")


def _served(output: str) -> set[str]:
    """The projects whose task Nx marks as come from the remote cache."""
    return set(re.findall(r"^> nx run (\w+):build\s+\[remote cache\]", output, re.MULTILINE))


def _quiet(done: Finished, which: str) -> None:
    """Raises CheckError if it could not talk to the cache: it goes on all the same."""
    if "Failed to send" in done.output or "remote cache error" in done.output.lower():
        raise CheckError(f"nx had trouble in the {which} run:\n{done.output}")
