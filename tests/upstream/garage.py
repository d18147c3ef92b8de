"""Nodes over one bucket of Garage, a store for those who run their own.

Checks what `real` checks over s3proxy.  It takes a quarter of an hour to build (``cargo install
garage --locked``), so it is run where it is found: `CAS_GARAGE`, or PATH.

Rule: what is expected comes from what clients sent.  Times are told, never judged.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import ClassVar

from tests.server.serving import free_port, listens, until
from tests.upstream import real


def program() -> str | None:
    """Where it is."""
    return os.environ.get("CAS_GARAGE") or shutil.which("garage")


class Garage(real.S3):
    """One node of it, over a directory."""

    environ: ClassVar[Mapping[str, str]] = {
        "AWS_ACCESS_KEY_ID": "GK" + 24 * "c",
        "AWS_SECRET_ACCESS_KEY": 64 * "5",
    }
    region = "garage"
    wrong: ClassVar[Mapping[str, str]] = {"AWS_SECRET_ACCESS_KEY": 64 * "6"}

    def __init__(self, scratch: Path) -> None:
        self._log = scratch / "garage.log"
        self._config = scratch / "garage.toml"
        self.port = free_port()
        (scratch / "objects").mkdir()
        self._config.write_text(
            f'metadata_dir = "{scratch}/objects/meta"\n'
            f'data_dir = "{scratch}/objects/data"\n'
            f'db_engine = "lmdb"\nreplication_factor = 1\n'
            f'rpc_bind_addr = "127.0.0.1:{free_port()}"\nrpc_secret = "{secrets.token_hex(32)}"\n'
            f'[s3_api]\ns3_region = "{self.region}"\napi_bind_addr = "127.0.0.1:{self.port}"\n'
        )

    def start(self) -> None:
        found = program()
        assert found is not None
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [found, "--config", str(self._config), "server", "--single-node",
                 "--default-access-key", "--default-bucket"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={
                    **os.environ,
                    "GARAGE_DEFAULT_ACCESS_KEY": self.environ["AWS_ACCESS_KEY_ID"],
                    "GARAGE_DEFAULT_SECRET_KEY": self.environ["AWS_SECRET_ACCESS_KEY"],
                    "GARAGE_DEFAULT_BUCKET": "bucket",
                },
            )  # fmt: skip
        until(self._listens, "Garage listens")

    def _listens(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self._log.read_text()
        return listens(self.port)


def main() -> int:
    if program() is None:
        print("tests.upstream.garage: skipped, since there is no garage on PATH")
        return 0
    with tempfile.TemporaryDirectory(prefix="cas-garage-") as name, ExitStack() as running:
        scratch = Path(name)
        objects = Garage(scratch)
        objects.start()
        running.callback(objects.kill)
        steps = (
            real.shared, real.counted, real.streamed, real.renewed, real.refused, real.outage,
            real.killed,
        )  # fmt: skip
        real.walk(steps, real.Fleet(scratch, running, objects), objects)
    return 0


if __name__ == "__main__":
    sys.exit(main())
