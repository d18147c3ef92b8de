"""A client in a process of its own, to be killed: ``python -m tests.conformance.uploader``.

Sends the first bytes of a file as one Write, says so, and waits for its end.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from tests.conformance.client import MIB, Client
from tests.conformance.serving import PATIENCE


def main(address: str, name: str, path: str, count: str) -> None:
    data = Path(path).read_bytes()[: int(count)]
    with Client(address) as client, client.writing() as stream:
        for at in range(0, len(data), MIB):
            stream.send("" if at else name, at, data[at : at + MIB])
        while not stream.all_sent():
            time.sleep(0.01)
        print("sent", flush=True)
        time.sleep(PATIENCE)


if __name__ == "__main__":
    main(*sys.argv[1:])
