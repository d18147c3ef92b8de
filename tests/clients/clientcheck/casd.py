"""buildbox-casd with the server as its remote: what one casd takes in, another with an empty
directory hands out.

BuildGrid's client drives both. The proof that the server served it: the second casd starts with
nothing of its own, the first has been stopped, and the server, asked directly, holds every file.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .buildgrid import BIG, download, expect_missing, same, upload
from .check import Bench, Check
from .errors import CheckError
from .process import Daemon, free_port, read
from .tools import closed_environment
from .tree import files, make_tree, manifest


@contextmanager
def _casd(bench: Bench, name: str, remote: str, instance: str) -> Iterator[str]:
    """A casd that keeps its own blobs in `name` and passes the rest on to `remote`; yields its
    host:port.
    """
    address = f"127.0.0.1:{free_port()}"
    argv: list[str | Path] = [
        bench.tools.casd,
        f"--cas-remote=http://{remote}",
        f"--cas-instance={instance}",
        "--cas-request-timeout=30",
        "--cas-retry-limit=0",
        f"--bind={address}",
        "--reserved=0",
        bench.work / name,
    ]
    daemon = Daemon.start(
        name, argv, env=closed_environment(bench.work), log=bench.work / f"{name}.log"
    )
    try:
        daemon.wait_for_port(address, bench.clock)
        yield address
    finally:
        daemon.stop(10)


def _check(bench: Bench, instance: str) -> str:
    tree = bench.work / "tree"
    make_tree(tree, BIG)
    sent = manifest(tree)
    expect_missing(bench.fills, instance, sent, True)
    with _casd(bench, "casd-up", bench.fills, instance) as address:
        digest = upload(bench, address, "", tree)
    expect_missing(bench.fills, instance, sent, False)
    with _casd(bench, "casd-down", bench.served_by, instance) as address:
        held = _blobs(bench.work / "casd-down")
        if held:
            raise CheckError(f"the second casd should start empty, it holds {held} blobs")
        done = download(bench, address, "", digest, bench.work / "received")
    same(sent, bench.work / "received")
    complaints = [
        line
        for name in ("casd-up", "casd-down")
        for line in _errors(read(bench.work / f"{name}.log"))
    ]
    if complaints:
        raise CheckError(
            "casd logged errors:\n" + "\n".join(f"    | {line}" for line in complaints[:10])
        )
    return f"{files(sent)} files served through casd and identical in {done.seconds:.1f} s"


def _blobs(directory: Path) -> int:
    """How many blobs a casd keeps, the empty one that it makes for itself left out."""
    return sum(
        path.is_file() and path.stat().st_size > 0
        for path in (directory / "cas/objects").rglob("*")
    )


def _errors(log: str) -> list[str]:
    return [line for line in log.splitlines() if "[ERROR]" in line or "[WARNING]" in line]


CHECKS = (
    Check("casd", "casd", 60, lambda bench: _check(bench, "")),
    Check("casd[a/b]", "casd", 60, lambda bench: _check(bench, "a/b")),
)
