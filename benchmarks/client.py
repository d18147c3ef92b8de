"""``python -m benchmarks.client``: the client against servers, and beside what else moves trees.

Rule: black box: commands as a person runs them, in processes of their own, on trees made anew.
Each tree that comes back is compared with the one that went, bit for bit; a difference ends the
run.  Figures are wall clock and, where told, bytes that went over the wire as the client counts
them.  Markdown on stdout, progress on stderr.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks import machine, servers
from benchmarks.servers import Kind, free_port
from cas.errors import CasError

MIB = 1 << 20

SECTIONS = ("packages", "mixed", "files", "cuts")

KINDS = {
    "small": (20_000, 1 << 10, 64 << 10),
    "middle": (500, MIB // 2, 2 * MIB),
    "large": (6, 64 * MIB, 192 * MIB),
}
"""Of the mixed tree: how many files, from and to which size."""

Row = list[str]


def mixed_tree(root: Path, total: int) -> None:
    """About `total` bytes of files of mixed sizes, half of them compressible."""
    chance = random.Random(8)
    sizes = [
        (kind, chance.randint(low, high))
        for kind, (count, low, high) in KINDS.items()
        for _ in range(count)
    ]
    scale = total / sum(size for _, size in sizes)
    for number, (kind, size) in enumerate(sizes):
        path = root / kind / f"{number % 97}" / f"{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        left = int(size * scale)
        with path.open("wb") as file:
            while left > 0:
                piece = min(left, MIB)
                noise = chance.randbytes(piece if number % 2 else max(1, piece // 16))
                file.write((noise * (piece // len(noise) + 1))[:piece])
                left -= piece


def many_files(root: Path, count: int) -> None:
    """`count` files of a few hundred bytes, a hundred to a directory."""
    chance = random.Random(9)
    for number in range(count):
        path = root / f"{number // 5000}" / f"{number // 100}" / f"{number}"
        if number % 100 == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(chance.randbytes(100 + number % 300))


def same(one: Path, other: Path) -> None:
    """Raises if the trees differ in names, kinds, bytes or modes."""
    subprocess.run(["diff", "-r", "--no-dereference", one, other], check=True)
    for folder, folders, files in os.walk(one):
        for name in (*folders, *files):
            path = Path(folder, name)
            if not path.is_symlink():
                there = other / path.relative_to(one)
                assert path.stat().st_mode == there.stat().st_mode, path


def size_of(root: Path) -> tuple[int, int]:
    """Files and bytes."""
    sizes = [path.stat().st_size for path in root.rglob("*") if not path.is_dir()]
    return len(sizes), sum(sizes)


def timed(arguments: Sequence[str | Path], **environ: str) -> tuple[float, str]:
    """Seconds of a command, and what it printed on both streams."""
    began = time.monotonic()
    ended = subprocess.run(
        arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **environ},
        check=False,
    )
    seconds = time.monotonic() - began
    if ended.returncode:
        raise SystemExit(f"{arguments} ended with {ended.returncode}: {ended.stdout[-2000:]}")
    return seconds, ended.stdout


class Cas:
    """The client's commands with caches of their own."""

    def __init__(self, url: str, scratch: Path) -> None:
        self.url = url
        self._cache = scratch / "xdg"

    def __call__(self, *arguments: str | Path) -> tuple[float, dict[str, object]]:
        seconds, said = timed(
            [sys.executable, "-m", "cas", *arguments, "--remote", self.url, "--json", "--quiet"],
            XDG_CACHE_HOME=str(self._cache),
        )
        answer: dict[str, object] = json.loads(said)
        return seconds, answer


def round_trip(url: str, tree: Path, scratch: Path) -> Row:
    """Push, push again, pull, pull again: seconds, and the second push's bytes."""
    cas = Cas(url, scratch)
    first, pushed = cas("push", tree)
    # Files that were made a moment ago are not remembered; those of a job's checkout are not new.
    time.sleep(2.1)
    cas("push", tree)
    again, repeated = cas("push", tree)
    assert repeated["digest"] == pushed["digest"]
    out = scratch / "out"
    pull, _ = cas("pull", str(pushed["digest"]), out)
    same(tree, out)
    time.sleep(2.1)
    cas("pull", str(pushed["digest"]), out)
    repull, unchanged = cas("pull", str(pushed["digest"]), out)
    assert unchanged["written"] == 0
    shutil.rmtree(out)
    shutil.rmtree(scratch / "xdg")
    return [
        f"{first:.2f}",
        f"{again:.2f}",
        str(repeated["sent_bytes"]),
        f"{pull:.2f}",
        f"{repull:.2f}",
    ]


def remotetool(binary: Path, address: str, tree: Path, scratch: Path) -> Row:
    """The Go SDK's tool: upload, upload again, download."""
    common = [
        *(str(binary), "--service", address, "--service_no_security", "--instance", ""),
        "--logtostderr",
    ]
    up, said = timed([*common, "--operation", "upload_dir", "--path", tree])
    digest = said.partition("Directory root digest: ")[2].split()[0]
    again, _ = timed([*common, "--operation", "upload_dir", "--path", tree])
    out = scratch / "sdk"
    out.mkdir()
    down, _ = timed([*common, "--operation", "download_dir", "--digest", digest, "--path", out])
    subprocess.run(["diff", "-r", "--no-dereference", tree, out], check=True)
    shutil.rmtree(out)
    return [f"{up:.2f}", f"{again:.2f}", "–", f"{down:.2f}", "–"]


def tarball(http: str, tree: Path, scratch: Path) -> Row:
    """``tar | zstd``, put and got as one blob over HTTP: what a vendor's cache action does."""
    up, _ = timed(["bash", "-c", _TAR_UP], TREE=str(tree), FILE=str(scratch / "t"), URL=http)
    # It knows nothing of what is there already: the second time costs the same.
    again, _ = timed(["bash", "-c", _TAR_UP], TREE=str(tree), FILE=str(scratch / "t"), URL=http)
    sent = (scratch / "t").stat().st_size
    out = scratch / "tar"
    out.mkdir()
    down, _ = timed(["bash", "-c", _TAR_DOWN], OUT=str(out), FILE=str(scratch / "t"), URL=http)
    same(tree, out)
    shutil.rmtree(out)
    (scratch / "t").unlink()
    return [f"{up:.2f}", f"{again:.2f}", str(sent), f"{down:.2f}", "–"]


_TAR_UP = """set -euo pipefail
tar -C "$TREE" -cf - . | zstd -q -T0 -3 -f -o "$FILE"
hash=$(sha256sum "$FILE" | cut -c1-64)
curl -sf --http1.1 -H Expect: -T "$FILE" "$URL/cas/$hash"
"""

_TAR_DOWN = """set -euo pipefail
hash=$(sha256sum "$FILE" | cut -c1-64)
curl -sf "$URL/cas/$hash" | zstd -dq | tar -C "$OUT" -xpf -
"""


def cut_and_resumed(target: str, times: int, size: int, scratch: Path) -> list[str]:
    """An upload and a download of one blob through connections that break `times` times each, at
    random bytes; what it took."""
    from cas.client.client import AsyncClient
    from cas.client.retry import Retry
    from cas.client.source import of_bytes
    from tests.client.serving import Proxy, random_cuts

    chance = random.Random(times)
    data = b"".join(chance.randbytes(MIB) for _ in range(size // MIB))
    patient = Retry(attempts=200, first=0.01, longest=0.05)

    async def run() -> list[str]:
        lines = []
        digest = of_bytes(data).digest
        for direction in ("upload", "download"):
            # Far enough apart that each connection carries a part and no more.
            cuts = random_cuts(times, times, 1, 2 * size // times)
            began = time.monotonic()
            async with (
                Proxy(target, cuts) as proxy,
                AsyncClient(f"grpc://{proxy.address}", retry=patient, zstd=False) as client,
            ):
                if direction == "upload":
                    await client.put(data)
                    moved = client.tally.sent_bytes
                else:
                    await client.get_file(digest, scratch / "cut")
                    moved = client.tally.got_bytes
                lines.append(
                    f"{direction}: {proxy.cuts} cuts, {moved / size:.2f} times its bytes, "
                    f"{time.monotonic() - began:.1f} s"
                )
        assert (scratch / "cut").read_bytes() == data
        return lines

    return asyncio.run(run())


@contextmanager
def started(kind: Kind, scratch: Path) -> Iterator[str]:
    directory = scratch / kind.name
    with servers.running(kind, directory) as running:
        yield running.address
    shutil.rmtree(directory)


def head(title: str) -> None:
    print(f"\n## {title}\n")
    print("| client → server | push | push again | bytes sent again | pull | pull again |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |", flush=True)


def row(*cells: str) -> None:
    print("| " + " | ".join(cells) + " |", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bazel-remote", type=Path)
    parser.add_argument("--nativelink", type=Path)
    parser.add_argument("--buildbox-casd", type=Path)
    parser.add_argument("--remotetool", type=Path)
    parser.add_argument("--mib", type=int, default=2048, help="size of the mixed tree")
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--cuts", type=int, default=50)
    parser.add_argument(
        "--sections", nargs="+", choices=SECTIONS, default=SECTIONS, metavar="SECTION"
    )
    options = parser.parse_args()
    peers: list[Kind] = []
    if options.bazel_remote:
        peers.append(servers.bazel_remote(options.bazel_remote, "zstd"))
    if options.nativelink:
        peers.append(servers.nativelink(options.nativelink))
    if options.buildbox_casd:
        peers.append(servers.buildbox_casd(options.buildbox_casd))
    packages = next(Path(path) for path in sys.path if path.endswith("site-packages"))
    print("# The client beside others\n")
    print("Taken by `python -m benchmarks.client`.\n")
    here = machine.describe(Path.cwd())
    print("; ".join(f"{name} {value}" for name, value in here.items()) + ".\n")
    print("Seconds. All trees that came back were compared bit for bit, modes included.")
    ours = servers.ours("cas", 2)
    with servers.scratch() as scratch:
        if "packages" in options.sections:
            run(packages, "site-packages", [ours, *peers], options, scratch)
        if "mixed" in options.sections:
            mixed_tree(scratch / "mixed", options.mib * MIB)
            run(scratch / "mixed", "Mixed sizes", [ours, *peers], options, scratch)
            shutil.rmtree(scratch / "mixed")
        if "files" in options.sections:
            many_files(scratch / "many", options.files)
            run(scratch / "many", "Small files", [ours], options, scratch)
            shutil.rmtree(scratch / "many")
        if "cuts" in options.sections:
            print(f"\n## {options.cuts} cuts at random bytes\n")
            for kind in (ours, *peers):
                with started(kind, scratch) as address:
                    try:
                        lines = cut_and_resumed(address, options.cuts, 256 * MIB, scratch)
                    except CasError as error:  # A peer may not resume at all.
                        lines = [f"did not get through: {error}"]
                for line in lines:
                    print(f"- {kind.name}, 256 MiB, {line}", flush=True)
    return 0


def say(tree: Path) -> str:
    files, size = size_of(tree)
    return f"{files:,} files, {size / MIB:,.0f} MiB"


def run(
    tree: Path,
    name: str,
    kinds: Sequence[Kind],
    options: argparse.Namespace,
    scratch: Path,
) -> None:
    """One table: a tree through each server, by each way."""
    head(f"{name}: {say(tree)}")
    for kind in kinds:
        print(f"{name}: {kind.name}", file=sys.stderr, flush=True)
        with started(kind, scratch) as address:
            row(f"cas → {kind.name}", *round_trip(f"grpc://{address}", tree, scratch))
        if options.remotetool:
            with started(kind, scratch) as address:
                row(
                    f"remotetool → {kind.name}",
                    *remotetool(options.remotetool, address, tree, scratch),
                )
    port = free_port()
    with started(servers.ours("cas-http", 2, ["--http", f"127.0.0.1:{port}"]), scratch):
        url = f"http://127.0.0.1:{port}"
        row("cas → cas over HTTP", *round_trip(url, tree, scratch))
        row("tar, zstd, PUT → cas over HTTP", *tarball(url, tree, scratch))


if __name__ == "__main__":
    sys.exit(main())
