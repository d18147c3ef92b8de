"""ccache over HTTP: what was compiled once must all come from the remote storage, by ccache's own
counters, after its local storage is gone.
"""

from .check import Bench, Check
from .errors import CheckError, NotServed
from .process import Finished, must, run
from .sources import COUNT, WARNING, compile_all, write_sources
from .tools import closed_environment
from .tree import Entry, difference, files


def _check(bench: Bench, path: str) -> str:
    root = bench.work / "sources"
    write_sources(root)

    made, _ = _compile(bench, "first", bench.fills_http, path)
    first = _counters(bench, "first")
    if first["cache_miss"] != COUNT or first["remote_storage_write"] < COUNT:
        raise CheckError(
            f"the first run should have missed and written {COUNT} times: {_some(first)}"
        )
    _no_errors(first)

    again, said = _compile(bench, "second", bench.served_http, path)
    second = _counters(bench, "second")
    hits = second["direct_cache_hit"] + second["preprocessed_cache_hit"]
    if hits != COUNT or second["cache_miss"] or second["local_storage_hit"]:
        raise NotServed(f"the second run should have had {COUNT} hits, all remote: {_some(second)}")
    if second["remote_storage_hit"] < COUNT:
        raise NotServed(f"only {second['remote_storage_hit']} entries came from the remote storage")
    _no_errors(second)
    if WARNING not in said:
        raise NotServed("the compiler's warning was not repeated")
    differs = difference(made, again)
    if differs:
        raise NotServed(f"objects differ between the runs:\n{differs}")
    return (
        f"{hits} of {COUNT} compilations served, {second['remote_storage_hit']} entries from the "
        f"remote storage, {files(made)} objects identical"
    )


CHECKS = (
    Check("ccache", "ccache", 90, lambda bench: _check(bench, "/cache"), http=True),
    Check("ccache[bazel]", "ccache", 90, lambda bench: _check(bench, "|layout=bazel"), http=True),
)


def _compile(bench: Bench, which: str, address: str, path: str) -> tuple[dict[str, Entry], str]:
    return compile_all(
        bench,
        bench.work / "sources",
        which,
        [bench.tools.ccache],
        _environment(bench, which, f"http://{address}{path}"),
    )


def _environment(bench: Bench, which: str, storage: str) -> dict[str, str]:
    home = bench.work / f"home-{which}"
    home.mkdir(exist_ok=True)
    return closed_environment(home) | {
        "CCACHE_DIR": str(home / "ccache"),
        "CCACHE_REMOTE_STORAGE": storage,
        "CCACHE_COMPILERCHECK": "content",
    }


def _counters(bench: Bench, which: str) -> dict[str, int]:
    done: Finished = must(
        run(
            [bench.tools.ccache, "--print-stats"],
            cwd=bench.work,
            env=_environment(bench, which, ""),
            log=bench.work / f"{which}-stats.log",
            clock=bench.clock,
        ),
        "ccache --print-stats",
    )
    return {name: int(number) for name, number in map(str.split, done.output.splitlines())}


def _some(counters: dict[str, int]) -> dict[str, int]:
    """Those that have counted something, in a message."""
    return {name: number for name, number in counters.items() if number}


def _no_errors(counters: dict[str, int]) -> None:
    wrong = {name: counters[f"remote_storage_{name}"] for name in ("error", "timeout")}
    if any(wrong.values()):
        raise CheckError(f"ccache had trouble with the remote storage: {wrong}")
