"""C sources to compile through a compiler cache, new to any cache; knows nothing of caches."""

import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from .check import Bench
from .process import must, run
from .tree import Entry, manifest

_SMALL = 20
COUNT = _SMALL + 2
WARNING = "nobody_uses_this"
"""In what the compiler says of one of them: a cache has to say it again."""


def write_sources(root: Path) -> None:
    """`COUNT` files: small ones, one of a megabyte of data, one that is warned about."""
    seed = uuid.uuid4().hex
    root.mkdir()
    for number in range(_SMALL):
        lines = [f'static const char seed[] = "{seed}";']
        lines += [
            f"int f{number}_{n}(int x) {{ return x * {n} + seed[{n % 30}]; }}" for n in range(50)
        ]
        (root / f"small{number}.c").write_text("\n".join(lines) + "\n")
    # Random, so that no compression makes it small.
    data = ",".join(str(byte) for byte in uuid.uuid4().bytes * 4 + _random(400_000))
    (root / "large.c").write_text(f"const unsigned char large[] = {{{data}}};\n")
    (root / "warned.c").write_text(
        f'const char *s = "{seed}";\nint w(int x) {{ int {WARNING} = x; return 0; }}\n'
    )


def compile_all(
    bench: Bench, root: Path, which: str, cache: Sequence[str | Path], env: Mapping[str, str]
) -> tuple[dict[str, Entry], str]:
    """Compiles all of them through `cache`; the object files, and what was said."""
    said = ""
    out = bench.work / f"objects-{which}"
    out.mkdir()
    for source in sorted(root.iterdir()):
        argv = [*cache, "gcc", "-Wall", "-c", source.name, "-o", str(out / f"{source.stem}.o")]
        log = bench.work / f"{which}-{source.stem}.log"
        done = run(argv, cwd=root, env=env, log=log, clock=bench.clock)
        said += must(done, f"gcc for {source.name}, {which}").output
    return manifest(out), said


def _random(size: int) -> bytes:
    with open("/dev/urandom", "rb") as source:
        return source.read(size)
