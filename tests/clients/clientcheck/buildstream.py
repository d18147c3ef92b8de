"""BuildStream: artifacts and sources up from one machine and down to another, by the Remote Asset
API and ContentAddressableStorage.

The second machine has caches of its own that begin empty, and it is not let build: what it checks
out, it pulled. Its own word is that it pulled, and the bytes are compared.
"""

from collections.abc import Mapping
from pathlib import Path

from .check import Bench, Check
from .errors import CheckError, NotServed
from .process import Finished, last_lines, must, run
from .tools import closed_environment
from .tree import difference, files, make_tree, manifest

BIG = 6_000_001
"""Bytes of the largest file: more than fits a batch call."""

_PROJECT = """\
name: check
min-version: 2.0
element-path: elements
"""

_ELEMENT = """\
kind: import
sources:
- kind: local
  path: files
"""

_MACHINE = """\
cachedir: {home}/cache
sourcedir: {home}/sources
logdir: {home}/logs
artifacts:
  override-project-caches: true
  servers: [{{url: "http://{remote}"{instance}, push: true}}]
source-caches:
  override-project-caches: true
  servers: [{{url: "http://{remote}"{instance}, push: true}}]
"""


def _machine(bench: Bench, name: str, remote: str, instance: str) -> Path:
    """The configuration of a machine whose caches are empty."""
    home = bench.work / name
    home.mkdir()
    named = f', instance-name: "{instance}"' if instance else ""
    config = home / "buildstream.conf"
    config.write_text(_MACHINE.format(home=home, remote=remote, instance=named))
    return config


def _bst(bench: Bench, config: Path, *words: str | Path) -> Finished:
    argv = [bench.tools.bst, "--no-interactive", "--no-colors", "--config", config, *words]
    return run(
        argv,
        cwd=bench.work / "project",
        env=_environment(bench),
        log=config.parent / f"bst-{words[0]}.log",
        clock=bench.clock,
    )


def _environment(bench: Bench) -> Mapping[str, str]:
    closed = closed_environment(bench.work)
    return {**closed, "PATH": f"{bench.tools.bst.parent}:{closed['PATH']}"}


def _said(finished: Finished, expected: str) -> None:
    """Raises NotServed unless the tool says so."""
    if finished.code != 0 or expected not in finished.output:
        raise NotServed(f"bst did not say {expected!r}\n{last_lines(finished.output)}")


def _check(bench: Bench, instance: str) -> str:
    project = bench.work / "project"
    (project / "elements").mkdir(parents=True)
    (project / "project.conf").write_text(_PROJECT)
    (project / "elements/all.bst").write_text(_ELEMENT)
    make_tree(project / "files", BIG)
    sent = manifest(project / "files")
    first = _machine(bench, "first", bench.fills, instance)
    built = must(_bst(bench, first, "build", "all.bst"), "bst build")
    for what in ("Pushed artifact", "Pushed source"):
        if what not in built.output:
            raise CheckError(f"bst build did not say {what!r}\n{last_lines(built.output)}")
    second = _machine(bench, "second", bench.served_by, instance)
    pulled = _bst(bench, second, "artifact", "pull", "all.bst")
    _said(pulled, "Pulled artifact")
    out = bench.work / "out"
    must(_bst(bench, second, "artifact", "checkout", "--directory", out, "all.bst"), "bst checkout")
    differs = difference(
        {path: entry for path, entry in sent.items() if entry.kind == "file"},
        {path: entry for path, entry in manifest(out).items() if entry.kind == "file"},
    )
    if differs:
        raise NotServed(f"what came back is not what was sent:\n{differs}")
    _said(_bst(bench, second, "source", "fetch", "all.bst"), "Pulled source")
    return f"{files(sent)} files of an artifact and its source served, identical"


CHECKS = (
    Check("buildstream", "buildstream", 120, lambda bench: _check(bench, "")),
    Check("buildstream[a/b]", "buildstream", 120, lambda bench: _check(bench, "a/b")),
)
