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


_KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(32 << 20),
    "MALLOC_ARENA_MAX": "1",
}
"""glibc, mallopt(3).  Messages of large streams are 1 MiB each: by default every one is mapped,
faulted in page by page and unmapped again, which costs a third of a read.  One arena, because
what is freed in one thread is then of use to the next."""


def variables() -> dict[str, str]:
    """What to set, where the operator has not; nothing that the installed grpcio ignores.

    GRPC_EXPERIMENTS: doc/environment_variables.md in grpc/grpc.  A version that does not know
    the experiment would complain of it in the log of every process.
    """
    library = _library()
    experiments = {"GRPC_EXPERIMENTS": f"-{_OFF}"} if library and _knows(library, _OFF) else {}
    return _KEEP_MEMORY | experiments


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
