"""``python -m tests.torture``: composition, and the verdict.

Exit codes: 0 nothing lost, nothing wrong, and fsck clean after its repair; 1 otherwise.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

from cas import digest as digests
from cas.pb import bytestream_pb2 as bs
from cas.pb import remote_execution_pb2 as pb
from cas.store.directory import prepare
from cas.store.local import open_store
from tests.conformance.client import Client
from tests.torture.frame import busy, passes, seed_of
from tests.torture.journal import Blob, Journal
from tests.torture.load import MIB, RECONNECT, TIMEOUT, Pace, Worker, check_action
from tests.torture.server import ROOT, Server, free_port

KILLS_PER_SECOND = 2.0
"""Asked for; a start of the server, which no kill interrupts, takes its time too."""
OLD_BYTES = 512 * MIB
"""Written before the run with the age of a day: what eviction may take."""
NEW_PER_SECOND = 2 * MIB
"""Bytes of blobs that the run may acknowledge, beside the small ones, which have half of the
margin: about as many at any moment as the part of the run that is over."""
MAX_NEW = 8192 * MIB
MARGIN = 384 * MIB
"""Room for the new, beyond what may be acknowledged, within `--max-size`: small blobs, the index,
uploads under way, what killed processes left.  Less than `OLD_BYTES`, so that the old must go;
the new is younger than the minimum age, and has room."""

AUDITORS = 4
"""Blobs that the audit reads at once."""

WAYS = {"worker": 55, "janitor": 20, "supervisor": 10, "all": 15}
"""What is killed, and how often of 100 times."""


def main() -> int:
    options = _options()
    seed = seed_of(options.seed)
    print(f"torture: {options.seconds} s, seed {seed}, {options.clients} clients", flush=True)
    good = passes(
        "torture",
        lambda directory: _torture(options, seed, directory),
        keep=options.keep,
        holds="journal, log and store",
        parent=options.directory,
    )
    return 0 if good else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--kills", type=int, default=0, help="go on until so many were made")
    parser.add_argument("--seed", type=int, help="of sizes, contents and kills (default: random)")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--durability", default="strict", choices=("strict", "batch", "none"))
    parser.add_argument("--engine", default="cq", choices=("cq", "aio"))
    parser.add_argument("--directory", help="where to work (default: the system's for such)")
    parser.add_argument("--keep", action="store_true", help="leave everything there on failure")
    return parser.parse_args()


def _torture(options: argparse.Namespace, seed: int, directory: Path) -> bool:
    dice = random.Random(f"{seed}/kills")
    store = directory / "store"
    _fill(store)
    new = int(min(MAX_NEW, max(64 * MIB, options.seconds * NEW_PER_SECOND)))
    server = Server(
        store, directory / "log", free_port(dice),
        "--http", "none", "--workers", "2", "--durability", options.durability,
        "--engine", options.engine, "--max-size", str(new + MARGIN), "--min-age", "86000",
        # The janitor lives for a second or two, and needs one to make room: it begins early.
        "--high-watermark", "80", "--low-watermark", "70",
        # Now and then everything is scrubbed as well.
        "--scrub-period", "60",
    )  # fmt: skip
    journal = Journal(seed, directory / "journal")
    server.start()
    pace = Pace(threading.Event(), new, MARGIN // 2, options.seconds, options.kills)
    clients = [Worker(n, server.address, journal, pace) for n in range(options.clients)]
    kills, hanging = busy(clients, pace, lambda: _kill(server, dice, pace, journal))
    report_run(journal, kills, hanging)
    audited = audit(server, journal)
    code = server.stop()
    evicted = _sum_logged(directory / "log", "evicted", "entries")
    print(f"evicted: {evicted:,} entries")
    print(f"stopped: exit code {code}; ready after {max(server.ready_seconds):.2f} s at most")
    checked = fsck(store)
    if options.keep or not (audited and checked):
        _tail(directory / "log")
    return audited and checked and code == 0 and not hanging and not journal.unexpected


def _fill(store: Path) -> None:
    """Old blobs, so that there is something to evict from the beginning."""
    day = time.time() - 86_400
    dice = random.Random("old")
    with closing(prepare(store)), closing(open_store(store, clock=lambda: day)) as opened:
        for _ in range(OLD_BYTES // (4 * MIB)):
            blobs = [dice.randbytes(100_000) for _ in range(40)] + [dice.randbytes(5_000)] * 20
            for pending in opened.put([(digests.of(data), data) for data in blobs]):
                pending.wait(600)


def _kill(server: Server, dice: random.Random, pace: Pace, journal: Journal) -> Counter[str]:
    kills: Counter[str] = Counter()
    began = told = time.monotonic()
    while time.monotonic() - began < pace.seconds or kills.total() < pace.kills:
        time.sleep(min(5.0, dice.expovariate(KILLS_PER_SECOND)))
        [way] = dice.choices(list(WAYS), list(WAYS.values()))
        if way in ("supervisor", "all"):
            server.kill_all() if way == "all" else server.kill_supervisor()
            kills[way] += 1
            server.start()
        else:
            kills[way] += server.kill_child(f"cas.server.{way}", dice)
        pace.killed = kills.total()
        if journal.lost or journal.wrong:
            print(f"at {time.monotonic() - began:.0f} s: a fault; no more kills")
            break
        if time.monotonic() - told > 30:
            told = time.monotonic()
            print(
                f"  {told - began:.0f} s: {kills.total()} kills, "
                f"{len(journal.blobs):,} blobs acknowledged, {journal.total >> 20:,} MiB",
                flush=True,
            )
    return kills


def report_run(journal: Journal, kills: Counter[str], hanging: int) -> None:
    print(f"kills: {kills.total()} ({', '.join(f'{n} {way}' for way, n in kills.items())})")
    done = ", ".join(f"{count:,} {name}" for name, count in sorted(journal.operations.items()))
    print(f"operations: {done}")
    print(
        f"acknowledged: {len(journal.blobs):,} blobs, {journal.total:,} bytes, "
        f"{len(journal.actions):,} action results"
    )
    if hanging:
        print(f"HANGING: {hanging} clients")
    for text in journal.unexpected[:20]:
        print(f"UNEXPECTED: {text}")


def audit(server: Server, journal: Journal) -> bool:
    """Every acknowledgement, looked up and read back."""
    blobs = list({blob.hash: blob for blob in journal.blobs}.values())
    with Client(server.address, *RECONNECT) as client:
        _await(client)
        for start in range(0, len(blobs), 1000):
            part = blobs[start : start + 1000]
            request = pb.FindMissingBlobsRequest(blob_digests=[blob.digest for blob in part])
            for digest in client.find_missing_blobs(request, timeout=TIMEOUT).missing_blob_digests:
                journal.fault(journal.lost, f"audit: {digest.hash}/{digest.size_bytes} is missing")
        missing = {text.split()[1].partition("/")[0] for text in journal.lost}

        def read(blob: Blob) -> None:
            parts = client._read(bs.ReadRequest(resource_name=blob.name), timeout=TIMEOUT)
            data = b"".join(part.data for part in parts)
            if data != journal.data(blob.number, blob.size):
                journal.fault(journal.wrong, f"audit: {blob.hash}/{blob.size}")

        with ThreadPoolExecutor(AUDITORS) as pool:
            list(pool.map(read, [blob for blob in blobs if blob.hash not in missing]))
        for digest, result in journal.actions.values():
            check_action(client, journal, digest, result)
    print(
        f"audit: {len(blobs):,} blobs and {len(journal.actions):,} action results: "
        f"{len(journal.lost)} lost, {len(journal.wrong)} wrong"
    )
    for text in [*journal.lost[:20], *journal.wrong[:20]]:
        print(f"  {text}")
    return not journal.lost and not journal.wrong


def _await(client: Client) -> None:
    """Until the worker that may have been killed last is back."""
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        with contextlib.suppress(Exception):
            client.find_missing_blobs(pb.FindMissingBlobsRequest(), timeout=5)
            return
        time.sleep(0.1)


def fsck(store: Path) -> bool:
    """A check, a repair, and a check that must find nothing."""
    codes = []
    for arguments in ((), ("--repair",), ()):
        ended = subprocess.run(
            [sys.executable, "-m", "cas", "fsck", "--dir", str(store), *arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        codes.append(ended.returncode)
        last = (ended.stdout.splitlines() or [ended.stderr])[-1]
        print(f"fsck {' '.join(arguments)}: exit code {ended.returncode}: {last}")
    return codes[1:] == [0, 0]


def _tail(log: Path) -> None:
    for line in log.read_text().splitlines()[-30:]:
        print(f"  {line[:400]}")


def _sum_logged(log: Path, event: str, fact: str) -> int:
    """The sum of a fact over all events of a name."""
    lines = (json.loads(line) for line in log.read_text().splitlines() if line.startswith("{"))
    return sum(line.get(fact, 0) for line in lines if line["event"] == event)


if __name__ == "__main__":
    sys.exit(main())
