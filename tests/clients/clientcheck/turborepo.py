"""Turborepo: tasks that ran once must all be remote hits in a clean copy, by its own summary."""

import json
import re
import shutil
import uuid
from pathlib import Path
from typing import Any

from .check import Bench, Check
from .errors import CheckError, NotServed
from .packages import NAMES, SCRIPT, outputs, words, write_packages
from .process import Finished, must, run
from .tools import closed_environment
from .tree import difference, files


def _check(bench: Bench) -> str:
    seed = uuid.uuid4().hex
    origin = bench.work / "origin"
    _write_workspace(origin, seed)
    copy = bench.work / "copy"
    shutil.copytree(origin, copy)

    first = _run(bench, origin, bench.fills_http)
    told = _summary(origin)
    if [one["status"] for one in told] != ["MISS"] * len(NAMES):
        raise CheckError(f"the first run should have missed {len(NAMES)} times: {told}")
    _quiet(first, "first")
    made = outputs(origin)

    second = _run(bench, copy, bench.served_http)
    again = _summary(copy)
    if not all(one["remote"] and not one["local"] and one["status"] == "HIT" for one in again):
        raise NotServed(f"the second run should have had {len(NAMES)} remote hits: {again}")
    _quiet(second, "second")
    for name in NAMES:
        if words(name, seed) not in second.output:
            raise NotServed(f"what {name}'s task said was not repeated")
    differs = difference(made, outputs(copy))
    if differs:
        raise NotServed(f"outputs differ between the runs:\n{differs}")
    return (
        f"{len(again)} of {len(NAMES)} tasks served, {files(made)} files identical, "
        f"ran in {first.seconds:.1f} s, then in {second.seconds:.1f} s"
    )


CHECKS = (Check("turborepo", "turborepo", 90, _check, http=True),)


def _write_workspace(root: Path, seed: str) -> None:
    write_packages(root, seed)
    for name in NAMES:
        manifest = {"name": name, "version": "1.0.0", "scripts": {"build": f"{SCRIPT} {name}"}}
        (root / name / "package.json").write_text(json.dumps(manifest))
    workspace = {"name": "check", "private": True, "packageManager": "npm@10.0.0"}
    (root / "package.json").write_text(json.dumps(workspace | {"workspaces": list(NAMES)}))
    lock = {"name": "check", "lockfileVersion": 3, "packages": {}}
    (root / "package-lock.json").write_text(json.dumps(lock))
    task = {"inputs": ["seed", "make.sh"], "outputs": ["out/**"]}
    (root / "turbo.json").write_text(json.dumps({"tasks": {"build": task}}))


def _run(bench: Bench, root: Path, address: str) -> Finished:
    home = bench.work / f"home-{root.name}"
    home.mkdir()
    env = closed_environment(home) | {
        "TURBO_TELEMETRY_DISABLED": "1",
        "npm_config_update_notifier": "false",
    }
    argv: list[str | Path] = [
        bench.tools.turbo,
        "run",
        "build",
        f"--api=http://{address}",
        "--token=anything",
        "--team=some-team",
        "--cache=remote:rw",
        "--no-update-notifier",
        "--summarize",
    ]
    log = bench.work / f"{root.name}.log"
    return must(
        run(argv, cwd=root, env=env, log=log, clock=bench.clock), f"turbo in the {root.name}"
    )


def _summary(root: Path) -> list[dict[str, Any]]:
    """What Turborepo says of each task's cache."""
    told = list(root.glob(".turbo/runs/*.json"))
    if len(told) != 1:
        raise CheckError(f"expected one summary of turbo's run, found {len(told)}")
    return [task["cache"] for task in json.loads(told[0].read_text())["tasks"]]


def _quiet(done: Finished, which: str) -> None:
    """Raises CheckError if it warned of the cache: it goes on without one that fails."""
    lines = re.findall(r"^.*(?:WARNING|ERROR).*(?:cach|[Rr]emote).*$", done.output, re.MULTILINE)
    if lines:
        raise CheckError(f"turbo warned in the {which} run: {lines}")
