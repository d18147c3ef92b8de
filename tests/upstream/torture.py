"""Nodes over one real object store, all of which are killed: ``python -m tests.upstream.torture``.

Clients of each node write, read and keep a journal of what was acknowledged, while processes of the
nodes, and the object store (s3proxy), are killed and come back.  With `through` all nodes are then
killed once more, and stay so; with `back` they start, and may send what waits.  In the end all that
was acknowledged is read back, byte for byte, from new nodes with empty disks.

Rule: as `tests.torture`, whose clients, journal and kills these are.  A client judges by what its
own node told it: what another one acknowledged is judged in the end.

Exit codes: 0 nothing lost, nothing wrong, and fsck clean after its repair; 1 otherwise.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import threading
import time
from collections import Counter
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from cas.index import unsent
from cas.store.files import Files
from cas.store.layout import Layout
from cas.store.opening import open_index
from tests.torture.__main__ import audit, fsck, report_run
from tests.torture.frame import busy, passes, seed_of
from tests.torture.journal import Journal
from tests.torture.load import MIB, Pace, Worker
from tests.torture.server import Server, free_port
from tests.upstream.real import CREDENTIALS, HOME, ObjectStore

KILLS_PER_SECOND = 1.0
"""Asked for; a start of a server, which no kill interrupts, takes its time too."""
STORE_LIVES = 3.0
STORE_LIES = 2.0
"""Seconds, on average and at most, for which the object store runs, and does not."""
NEW_PER_SECOND = MIB
"""Bytes of blobs that the clients of a node may have acknowledged, and a quarter as many of small
ones: all of it is read back from the object store in the end."""
DRAINS = 240.0
"""Seconds in which what waits must be sent: patience, not a measure."""
WAYS = {"worker": 45, "janitor": 30, "supervisor": 10, "all": 15}


@dataclass(frozen=True)
class Node:
    server: Server
    journal: Journal
    directory: Path

    def waits(self) -> int:
        """How much is to be sent upstream."""
        layout = Layout(self.directory)
        with closing(open_index(layout, Files(), strict=False)) as index:
            return unsent.waiting(index).entries


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.upstream.torture", description=__doc__)
    parser.add_argument("--writes", default="back", choices=("through", "back"))
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--clients", type=int, default=6, help="of each node")
    parser.add_argument("--seed", type=int, help="of sizes, contents and kills (default: random)")
    parser.add_argument("--keep", action="store_true", help="leave everything there on failure")
    options = parser.parse_args()
    # So that nothing is left running by whoever ends it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    if not (HOME / ".complete").exists():
        print("tests.upstream.torture: no s3proxy yet: run tests/upstream/setup first")
        return 1
    seed = seed_of(options.seed)
    print(
        f"{options.writes}: {options.seconds:g} s, seed {seed}, {options.nodes} nodes", flush=True
    )
    good = passes(
        options.writes,
        lambda scratch: _torture(options, seed, scratch),
        keep=options.keep,
        holds="journals, logs and stores",
    )
    return 0 if good else 1


def _torture(options: argparse.Namespace, seed: int, scratch: Path) -> bool:
    dice = random.Random(f"{seed}/kills")
    objects = ObjectStore(scratch)
    objects.start()
    with ExitStack() as running:
        running.callback(objects.kill)
        nodes = [
            _node(scratch, f"node-{n}", seed * 10 + n, objects, dice, options.writes)
            for n in range(options.nodes)
        ]
        for node in nodes:
            node.server.start()
            running.callback(node.server.kill_all)
        most = int(options.seconds * NEW_PER_SECOND)
        pace = Pace(threading.Event(), most, most // 4, options.seconds)
        clients = [
            Worker(n, node.server.address, node.journal, pace)
            for node in nodes
            for n in range(options.clients)
        ]
        kills, hanging = busy(clients, pace, lambda: _kill(nodes, objects, dice, options.seconds))
        for node in nodes:
            node.server.kill_all()
        if options.writes == "back":
            _drain(nodes)
        for node in nodes:
            report_run(node.journal, kills, hanging)
        read = _audit_anew(scratch, objects, dice, nodes)
    codes = [fsck(node.directory) for node in nodes]
    unexpected = any(node.journal.unexpected for node in nodes)
    return read and all(codes) and not hanging and not unexpected


def _node(
    scratch: Path, name: str, seed: int, objects: ObjectStore, dice: random.Random, writes: str
) -> Node:
    server = Server(
        scratch / name, scratch / f"{name}.log", free_port(dice),
        "--http", "none", "--workers", "2",
        "--upstream", "s3://bucket/team", "--upstream-endpoint", objects.endpoint,
        "--upstream-region", "here", "--upstream-timeout", "5", "--upstream-writes", writes,
        **CREDENTIALS,
    )  # fmt: skip
    journal = Journal(seed, scratch / f"{name}.journal")
    return Node(server, journal, scratch / name)


def _kill(
    nodes: list[Node], objects: ObjectStore, dice: random.Random, seconds: float
) -> Counter[str]:
    kills: Counter[str] = Counter()
    ends = threading.Event()

    def kill_store(dice: random.Random) -> None:
        while not ends.wait(dice.expovariate(1 / STORE_LIVES)):
            objects.kill()
            kills["object store"] += 1
            ends.wait(dice.uniform(0, STORE_LIES))
            objects.start()

    storm = threading.Thread(target=kill_store, args=(random.Random(dice.random()),))
    storm.start()
    try:
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            time.sleep(min(5.0, dice.expovariate(KILLS_PER_SECOND)))
            server = dice.choice(nodes).server
            [way] = dice.choices(list(WAYS), list(WAYS.values()))
            if way in ("supervisor", "all"):
                server.kill_all() if way == "all" else server.kill_supervisor()
                kills[way] += 1
                server.start()
            else:
                kills[way] += server.kill_child(f"cas.server.{way}", dice)
            if any(node.journal.lost or node.journal.wrong for node in nodes):
                print(f"at {time.monotonic() - began:.0f} s: a fault; no more kills")
                break
    finally:
        ends.set()
        storm.join()
    return kills


def _drain(nodes: list[Node]) -> None:
    """The nodes start, send what waits, and end."""
    waited = {node.directory.name: node.waits() for node in nodes}
    for node in nodes:
        node.server.start()
    began = time.monotonic()
    while any(node.waits() for node in nodes):
        if time.monotonic() - began > DRAINS:
            raise RuntimeError(f"{[node.waits() for node in nodes]} entries are not sent yet")
        time.sleep(0.5)
    print(f"waited for the restart: {waited}; sent within {time.monotonic() - began:.0f} s")
    for node in nodes:
        if node.server.stop():
            raise RuntimeError(f"{node.directory.name} did not end as asked")


def _audit_anew(
    scratch: Path, objects: ObjectStore, dice: random.Random, nodes: list[Node]
) -> bool:
    """Reads all that was acknowledged from nodes that never saw it."""
    good = True
    for number, node in enumerate(nodes):
        new = _node(scratch, f"new-{number}", 0, objects, dice, "through").server
        new.start()
        try:
            good = audit(new, node.journal) and good
        finally:
            if new.stop():
                good = False
    return good


if __name__ == "__main__":
    sys.exit(main())
