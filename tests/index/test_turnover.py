"""The index's file under a mixed cache that turns over, with readers killed along the way."""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

from cas.index import holes
from cas.index.changes import Changes, NewAction, NewBlob
from cas.index.lmdb import Index
from cas.index.records import ActionRecord, Record, action_key, pack_action

LIVING = 12 << 20
"""Bytes of values that are there at a time."""
TURNOVERS = 10
READER = (
    "import sys; from pathlib import Path; from cas.index.lmdb import Index\n"
    "index = Index(Path(sys.argv[1]), sync=False)\n"
    "with index.reading():\n"
    "    print('ready', flush=True); sys.stdin.readline()\n"
)


def kill_a_reader(path: Path) -> None:
    """One that dies within a snapshot, which it leaves in LMDB's table of readers."""
    command = [sys.executable, "-c", READER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        os.kill(process.pid, 9)


def some(dice: random.Random, count: int) -> tuple[list[NewBlob], list[NewAction]]:
    """Small blobs of all sizes, large ones, and action results."""
    blobs, actions = [], []
    for _ in range(count):
        key = b"\1" + dice.randbytes(32) + b"\5"
        kind = dice.random()
        if kind < 0.15:
            blobs.append(NewBlob(key, None, 1, 100_000))
        elif kind < 0.7:
            size = int(math.exp(dice.uniform(math.log(100), math.log(16_384))))
            blobs.append(NewBlob(key, bytes(size)))
        else:
            result = bytes(dice.randrange(200, 4000))
            packed = pack_action(ActionRecord(0, "", [key] * 5, True, result))
            actions.append(NewAction(action_key("main", key[:33]), packed))
    return blobs, actions


def test_it_stays_within_one_and_a_half_times_what_lives(tmp_path: Path) -> None:
    dice = random.Random(11)
    index = Index(tmp_path, sync=False)
    order: OrderedDict[bytes, int] = OrderedDict()
    living = written = 0
    kills = 0
    pinned = 0
    while written < LIVING * (1 + TURNOVERS):
        blobs, actions = some(dice, 20)
        index.apply(Changes(7, blobs=blobs, actions=actions))
        fresh = {blob.key: len(blob.data or b"") for blob in blobs}
        fresh |= {action.key: len(action.packed) for action in actions}
        order |= fresh
        written += sum(fresh.values())
        living += sum(fresh.values())
        # Approximate LRU: some of what is there is used again.
        for key in dice.sample(sorted(fresh), 5):
            order.move_to_end(key)
        for key in dice.sample(list(order)[:2000], min(5, len(order))):
            order.move_to_end(key)
        if written > (kills + 1) * LIVING // 2:
            kill_a_reader(tmp_path)
            kills += 1
            pinned = 5
        elif pinned:
            # Some commits pass before the janitor looks.
            pinned -= 1
            if not pinned:
                assert index.clear_dead_readers() == 1
        if living > LIVING:
            victims: list[tuple[bytes, Record]] = []
            while living > LIVING * 0.95:
                key, size = order.popitem(last=False)
                record = index.record(key)
                assert record is not None
                victims.append((key, record))
                living -= size
            for at in range(0, len(victims), 256):
                index.evict(victims[at : at + 256], 7, [])
            totals = index.totals()
            if totals.disk_bytes > 1.2 * totals.live_bytes + (1 << 20):
                for min_run in holes.RUNS:
                    after: int | None = -1
                    while after is not None:
                        after = holes.give_back(index, after, min_run).after
    assert kills >= 2 * TURNOVERS
    totals = index.totals()
    assert totals.entries == len(order)
    assert totals.used_bytes <= 1.5 * totals.live_bytes
    assert totals.disk_bytes <= 1.5 * totals.live_bytes
    index.close()
