"""sccache over WebDAV: what was compiled once must be a hit of its next server, which has no disk
cache, by its own statistics.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .check import Bench, Check
from .errors import CheckError, NotServed
from .process import free_port, must, run
from .sources import COUNT, WARNING, compile_all, write_sources
from .tools import closed_environment
from .tree import difference, files


def _check(bench: Bench) -> str:
    root = bench.work / "sources"
    write_sources(root)
    with _server(bench, "first", bench.fills_http) as env:
        made, _ = compile_all(bench, root, "first", [bench.tools.sccache], env)
        first = _statistics(bench, "first", env)
    misses, hits = _sum(first, "cache_misses"), _sum(first, "cache_hits")
    if misses != COUNT or hits or first["cache_write_errors"]:
        raise CheckError(f"the first run should have missed {COUNT} times: {first}")

    with _server(bench, "second", bench.served_http) as env:
        again, said = compile_all(bench, root, "second", [bench.tools.sccache], env)
        second = _statistics(bench, "second", env)
    misses, hits = _sum(second, "cache_misses"), _sum(second, "cache_hits")
    if hits != COUNT or misses:
        raise NotServed(
            f"the second run had {hits} hits and {misses} misses, expected {COUNT} hits"
        )
    if second["cache_read_errors"] or second["cache_timeouts"]:
        raise CheckError(f"sccache had trouble with the cache: {second}")
    if WARNING not in said:
        raise NotServed("the compiler's warning was not repeated")
    differs = difference(made, again)
    if differs:
        raise NotServed(f"objects differ between the runs:\n{differs}")
    return f"{hits} of {COUNT} compilations served, {files(made)} objects identical"


CHECKS = (Check("sccache", "sccache", 90, _check, http=True),)


@contextmanager
def _server(bench: Bench, which: str, address: str) -> Iterator[dict[str, str]]:
    """A server of sccache's own, in its own session; the environment of its clients."""
    home = bench.work / f"home-{which}"
    home.mkdir()
    env = closed_environment(home) | {
        "SCCACHE_WEBDAV_ENDPOINT": f"http://{address}/webdav",
        "SCCACHE_WEBDAV_KEY_PREFIX": "some/project",
        "SCCACHE_SERVER_PORT": str(free_port()),
        "SCCACHE_DIR": str(home / "unused"),
    }
    done = run(
        [bench.tools.sccache, "--start-server"],
        cwd=home,
        # It leaves its session to run on, so that it is ended by its own word below.
        env=env | {"SCCACHE_IDLE_TIMEOUT": "120"},
        log=bench.work / f"{which}-start.log",
        clock=bench.clock,
    )
    must(done, "sccache --start-server")
    try:
        yield env
    finally:
        log = bench.work / f"{which}-stop.log"
        argv: list[str | Path] = [bench.tools.sccache, "--stop-server"]
        run(argv, cwd=home, env=env, log=log, clock=bench.clock)


def _statistics(bench: Bench, which: str, env: dict[str, str]) -> dict[str, Any]:
    done = run(
        [bench.tools.sccache, "--show-stats", "--stats-format=json"],
        cwd=bench.work,
        env=env,
        log=bench.work / f"{which}-stats.log",
        clock=bench.clock,
    )
    told = json.loads(must(done, "sccache --show-stats").output)
    if not told["cache_location"].startswith("webdav"):
        raise CheckError(f"sccache keeps its cache elsewhere: {told['cache_location']}")
    statistics: dict[str, Any] = told["stats"]
    return statistics


def _sum(statistics: dict[str, Any], name: str) -> int:
    return sum(statistics[name]["counts"].values())
