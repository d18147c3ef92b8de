"""A few packages whose one task makes random files and says something; for the task runners of
JavaScript. Knows nothing of them.
"""

from pathlib import Path

from .tree import Entry, manifest

NAMES = ("one", "two", "three", "four")

SCRIPT = "sh make.sh"

# It speaks first: Nx is done with a task once its process has ended, and can lose its last words.
_MAKE = """\
set -eu
echo "told-by-$1-$(cat seed)"
mkdir -p out/a/b
for n in 1 2 3 4 5; do head -c $((n * n * 60000)) /dev/urandom > "out/random$n"; done
seq 1 30000 > out/a/squeezable
date +%s%N > out/a/b/when
true > out/nothing
echo '#!/bin/sh' > out/go
chmod 755 out/go
"""


def write_packages(root: Path, seed: str) -> None:
    """A directory for each of `NAMES` below `root`, with `make.sh` and `seed` in it."""
    for name in NAMES:
        (root / name).mkdir(parents=True)
        (root / name / "make.sh").write_text(_MAKE)
        (root / name / "seed").write_text(f"{seed}\n")


def words(name: str, seed: str) -> str:
    """What the task of package `name` says."""
    return f"told-by-{name}-{seed}"


def outputs(root: Path) -> dict[str, Entry]:
    """What the tasks made; a runner's own logs and modes of directories left out."""
    made = {}
    for name in NAMES:
        for path, entry in manifest(root / name / "out").items():
            if entry.kind == "file":
                made[f"{name}/{path}"] = entry
    return made
