"""The environment that a serving process should be started with.

Rule: must not import grpc, which reads these variables when it is first imported; whoever
starts the process sets them.
"""

from __future__ import annotations

import importlib.util
import mmap
from pathlib import Path

_OFF = "event_engine_listener"
"""gRPC's experiment to read and write sockets on a pool of its own threads, on by default.
Without it the thread that polls does so itself, which costs a quarter less on small calls."""


def variables() -> dict[str, str]:
    """What to set, where the operator has not; nothing that the installed grpcio ignores.

    GRPC_EXPERIMENTS: doc/environment_variables.md in grpc/grpc.  A version that does not know
    the experiment would complain of it in the log of every process.
    """
    library = _library()
    return {"GRPC_EXPERIMENTS": f"-{_OFF}"} if library and _knows(library, _OFF) else {}


def _library() -> Path | None:
    """The installed grpcio's C core, found without importing it."""
    package = importlib.util.find_spec("grpc")
    for folder in (package and package.submodule_search_locations) or ():
        for library in sorted(Path(folder, "_cython").glob("cygrpc*.so")):
            return library
    return None


def _knows(library: Path, experiment: str) -> bool:
    """Experiments are known by name, so the names are in the library."""
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        return text.find(b"\0%s\0" % experiment.encode()) >= 0
