"""A build whose every action is cached: its wall time with each cache.

Rule: the only place that runs Bazel.  Every build has an output base of its own, so
that nothing but the cache under test can help; analysis is done before the clock
starts; a build that ran any action itself is an error, not a slow sample.

The workspace needs nothing from outside: a rule of its own whose actions write
random bytes of a few sizes, several actions deep.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from benchmarks.compare import Drive, Report, turned
from benchmarks.servers import DidNotStart, Kind, running, scratch
from benchmarks.stats import median
from benchmarks.workloads import KIB, MIB

DISK_CACHE = "bazel --disk_cache"

_SIZES = (1 * KIB, 1 * KIB, 2 * KIB, 4 * KIB, 8 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, 1 * MIB)
"""Output sizes, in turn: most outputs of real builds are small, most bytes are in large ones."""

_RULE = """\
def _impl(ctx):
    out = ctx.actions.declare_file(ctx.label.name + ".out")
    ctx.actions.run_shell(
        outputs = [out],
        inputs = ctx.files.srcs,
        arguments = [out.path, str(ctx.attr.size)],
        command = 'head -c "$2" /dev/urandom > "$1"',
        mnemonic = "RandomBytes",
    )
    return [DefaultInfo(files = depset([out]))]

random_bytes = rule(
    implementation = _impl,
    attrs = {"srcs": attr.label_list(allow_files = True), "size": attr.int()},
)
"""

_LAYERS = 4


class BuildFailed(Exception):
    """Bazel failed, or did not do what was to be measured; the message's last line says why."""


def build_file(actions: int) -> str:
    """`actions` targets in layers: each depends on one of the layer below, the first on a file."""
    width = max(1, actions // _LAYERS)
    lines = ['load("//:rules.bzl", "random_bytes")']
    for number in range(actions):
        source = f":t{number - width}" if number >= width else "nonce.txt"
        size = _SIZES[number % len(_SIZES)]
        lines.append(f'random_bytes(name = "t{number}", srcs = ["{source}"], size = {size})')
    return "\n".join(lines) + "\n"


def bazel(
    program: str, kinds: Sequence[Kind], actions: int, drive: Drive, report: Report
) -> dict[str, Any]:
    """Wall seconds of the cached build, the median of the rounds, for each cache."""
    seconds: dict[str, list[float]] = {}
    problems: dict[str, str] = {}
    with scratch(drive.directory) as directory, ExitStack() as servers:
        source = directory / "workspace"
        workspace(source, actions)
        caches = {}
        for kind in kinds:
            try:
                server = servers.enter_context(running(kind, directory / kind.name))
            except DidNotStart as error:
                problems[kind.name] = str(error).splitlines()[0]
                continue
            caches[kind.name] = f"--remote_cache=grpc://{server.address}"

        caches[DISK_CACHE] = f"--disk_cache={directory / 'disk-cache'}"

        def attempt(name: str, hits: int) -> float | None:
            """None once a cache has failed; the others go on."""
            if name in problems:
                return None
            try:
                return timed(program, directory, source, caches[name], hits)
            except BuildFailed as error:
                problems[name] = str(error).splitlines()[-1]
                report(f"bazel  {name}: {error}")
                return None

        for name in caches:
            report(f"bazel  filling {name}")
            attempt(name, hits=0)
        for round_ in range(drive.rounds):
            for name in turned(list(caches), round_):
                passed = attempt(name, hits=actions)
                if passed is not None:
                    seconds.setdefault(name, []).append(passed)
                    report(f"bazel  round {round_ + 1}  {name}  {passed:.2f} s")
    return {
        "version": _version(program),
        "actions": actions,
        "bytes": sum(_SIZES[number % len(_SIZES)] for number in range(actions)),
        "seconds": {n: median(found) for n, found in seconds.items() if n not in problems},
        "problems": problems,
    }


def workspace(source: Path, actions: int) -> None:
    """Makes one that no cache has seen."""
    source.mkdir()
    (source / "WORKSPACE").write_text('workspace(name = "cached")\n')
    (source / "rules.bzl").write_text(_RULE)
    (source / "BUILD").write_text(build_file(actions))
    (source / "nonce.txt").write_text(uuid.uuid4().hex)


def timed(program: str, directory: Path, source: Path, cache: str, hits: int) -> float:
    """Seconds of one build with the flag `cache`, which must have so many hits."""
    with _output_base(program, directory, source) as command:
        flags = ["--spawn_strategy=local", "--noshow_progress", "--color=no", cache]
        _run([*command, "build", "--nobuild", *flags, "//..."], source)
        began = time.monotonic()
        output = _run([*command, "build", *flags, "//..."], source)
        passed = time.monotonic() - began
    if found_hits(output) != hits:
        raise BuildFailed(f"{output}\n{found_hits(output)} cache hits, expected {hits}")
    return passed


def found_hits(output: str) -> int:
    """Actions that the cache served, by Bazel's own summary; raises BuildFailed without one."""
    match = re.search(r"^INFO: \d+ process(?:es)?: (.*)$", output, re.MULTILINE)
    if match is None:
        raise BuildFailed(f"{output}\nBazel printed no summary of its processes")
    return sum(int(count) for count in re.findall(r"(\d+) (?:remote|disk) cache hit", match[1]))


@contextmanager
def _output_base(program: str, directory: Path, workspace: Path) -> Iterator[list[str]]:
    """A command line with a fresh output base; its Bazel server is ended afterwards."""
    with scratch(directory) as base:
        command = [
            *(program, f"--output_user_root={directory / 'root'}", f"--output_base={base}"),
            *("--nohome_rc", "--noworkspace_rc", "--max_idle_secs=60"),
        ]
        try:
            yield command
        finally:
            with suppress(BuildFailed):
                _run([*command, "shutdown"], workspace)
            with suppress(FileNotFoundError, ProcessLookupError, ValueError):
                # A server that could not be asked to end.
                os.kill(int((base / "server" / "server.pid.txt").read_text()), signal.SIGKILL)
            # Bazel makes its outputs read-only, which would keep them.
            subprocess.run(["chmod", "-R", "u+w", str(base)], check=False)


def _run(command: Sequence[str], workspace: Path) -> str:
    try:
        done = subprocess.run(
            command,
            cwd=workspace,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildFailed(f"{command[0]}: {error}") from None
    if done.returncode:
        tail = done.stdout[-2000:].strip()
        raise BuildFailed(f"{command[0]} ended with {done.returncode}:\n{tail}")
    return done.stdout


def _version(program: str) -> str:
    with suppress(BuildFailed):
        output = _run([program, "--version"], Path.cwd())
        return output.strip().splitlines()[-1]
    return "unknown"
