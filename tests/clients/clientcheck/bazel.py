"""Bazel over gRPC: a build into an empty cache, then the same from a clean output base, all of it
from the cache.

Bazel runs with --batch, in the process that is started: no Bazel server outlives a build.
"""

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .bazel_workspace import BULK, LOUD_LINES, Workspace, write_workspace
from .check import Bench, Check
from .errors import CheckError, NotServed
from .process import Finished, last_lines, must, run
from .tools import Tools, closed_environment
from .tree import Entry, difference, files, manifest

_NEVER_DOWNLOAD = "--experimental_repository_disable_download"


@dataclass(frozen=True)
class Release:
    """What differs between Bazel releases: the program, and the flags that it alone needs."""

    name: str
    program: Callable[[Tools], Path]
    startup: tuple[str, ...]
    build: tuple[str, ...]


BAZEL4 = Release(
    "bazel4",
    lambda tools: tools.bazel4,
    # Debian's package says so in a system bazelrc, which is not read here.
    startup=("--install_base=/usr/share/bazel", "--trust_install_base"),
    build=("--host_javabase=@local_jdk//:jdk", _NEVER_DOWNLOAD),
)
BAZEL2 = Release(
    "bazel2",
    lambda tools: tools.bazel2,
    startup=(),
    # It has no flag against downloads; the dead proxy of its environment stops them.
    build=(
        "--host_javabase=@bazel_tools//tools/jdk:absolute_javabase",
        "--define=ABSOLUTE_JAVABASE=/usr",
    ),
)


@dataclass(frozen=True)
class Counts:
    """How many processes Bazel says it got from where. `other` are kinds that no build here
    should have.
    """

    local: int
    hits: int
    other: int
    line: str


def parse_counts(output: str) -> Counts:
    """Reads Bazel's own summary, such as `INFO: 9 processes: 2 internal, 3 remote cache hit, 4
    local.`
    """
    lines = re.findall(r"^INFO: (\d+ process(?:es)?: .*)$", output, re.MULTILINE)
    if not lines:
        raise CheckError(f"Bazel printed no summary of its processes\n{last_lines(output)}")
    local = hits = other = 0
    for count, kind in re.findall(r"(\d+) ([a-z][a-z -]*)", lines[-1].partition(":")[2]):
        match kind.strip():
            case "internal":
                pass
            case "remote cache hit":
                hits += int(count)
            case "local" | "processwrapper-sandbox" | "linux-sandbox" | "worker":
                local += int(count)
            case _:
                other += int(count)
    return Counts(local, hits, other, lines[-1])


def cache_warnings(output: str) -> list[str]:
    """The lines in which Bazel complains of anything: each could be a cache failure that the build
    survived.

    But one, about Debian's bazelrc, which the build leaves unread on purpose.
    """
    pattern = r"^(WARNING|ERROR)\b|BulkTransferException|StatusRuntimeException|Remote Cache:"
    unread = "WARNING: The following rc files are no longer being read"
    return [
        line
        for line in output.splitlines()
        if re.search(pattern, line) and not line.startswith(unread)
    ]


def checks(release: Release, units: int) -> tuple[Check, ...]:
    """The check in the empty instance, and a smaller one in an instance whose name has a slash."""
    return (
        Check(release.name, release.name, 400, lambda bench: _check(release, bench, units, "")),
        Check(
            f"{release.name}[a/b]",
            release.name,
            240,
            lambda bench: _check(release, bench, units // 5, "a/b"),
        ),
    )


def http_check(release: Release, units: int) -> Check:
    """The check over HTTP, in an instance whose name has a slash."""

    def check(bench: Bench) -> str:
        caches = [f"http://{address}/a/b" for address in (bench.fills_http, bench.served_http)]
        return _check(release, bench, units, "", (caches[0], caches[1]))

    return Check(f"{release.name}[http]", release.name, 240, check, http=True)


def _check(
    release: Release,
    bench: Bench,
    units: int,
    instance: str,
    caches: tuple[str, str] | None = None,
) -> str:
    """`caches` are the URLs to fill and to be served by, over gRPC if they are not given."""
    fills, served_by = caches or (f"grpc://{bench.fills}", f"grpc://{bench.served_by}")
    workspace = write_workspace(bench.work, units)

    first = _build(release, bench, workspace, instance, fills, "first")
    counts = parse_counts(first.output)
    _no_warnings(first.output, "first")
    if counts.hits or counts.other or counts.local < workspace.least_actions:
        raise CheckError(
            f"the first build should have run at least {workspace.least_actions} actions, "
            f"all locally: {counts.line}"
        )
    built = _outputs(bench, "first")
    _complete(built)
    shutil.rmtree(_output_base(bench, "first"), onerror=_writable_first)

    second = _build(release, bench, workspace, instance, served_by, "second")
    again = parse_counts(second.output)
    if again.local or again.other or again.hits != counts.local:
        raise NotServed(
            f"the first build ran {counts.local} actions locally, the second: {again.line}"
        )
    _no_warnings(second.output, "second")
    if f"said-on-stdout-{workspace.seed}" not in second.output:
        raise NotServed("the stdout of //:loud was not replayed")
    if f"said-on-stderr-{LOUD_LINES}-in-many-words" not in second.output:
        raise NotServed("the stderr of //:loud was not replayed")
    differs = difference(built, _outputs(bench, "second"))
    if differs:
        raise NotServed(f"outputs differ between the builds:\n{differs}")
    return (
        f"{again.hits} of {counts.local} actions served, {files(built)} files identical, "
        f"built in {first.seconds:.1f} s, then in {second.seconds:.1f} s"
    )


def _output_base(bench: Bench, which: str) -> Path:
    return bench.work / which


def _build(
    release: Release, bench: Bench, workspace: Workspace, instance: str, cache: str, which: str
) -> Finished:
    home = bench.work / f"home-{which}"
    home.mkdir()
    argv: list[str | Path] = [
        release.program(bench.tools),
        f"--output_user_root={bench.work / 'user-root'}",
        f"--output_base={_output_base(bench, which)}",
        "--batch",
        "--nohome_rc",
        "--nosystem_rc",
        "--noworkspace_rc",
        "--host_jvm_args=-Xmx1500m",
        "--host_jvm_args=-Djava.net.preferIPv4Stack=true",
        *release.startup,
        "build",
        f"--remote_cache={cache}",
        f"--remote_instance_name={instance}",
        "--remote_timeout=60",
        "--remote_accept_cached=true",
        "--remote_upload_local_results=true",
        "--disk_cache=",
        "--repository_cache=",
        "--spawn_strategy=local",
        "--genrule_strategy=local",
        "--incompatible_strict_action_env",
        "--workspace_status_command=/bin/true",
        "--symlink_prefix=/",
        "--color=no",
        "--curses=no",
        "--noshow_progress",
        "--verbose_failures",
        *(f"--override_repository={name}={path}" for name, path in workspace.repositories.items()),
        *release.build,
        "//...",
    ]
    done = run(
        argv,
        cwd=workspace.path,
        env=closed_environment(home),
        log=bench.work / f"{which}.log",
        clock=bench.clock,
    )
    return must(done, f"the {which} build")


def _no_warnings(output: str, which: str) -> None:
    lines = cache_warnings(output)
    if lines:
        raise CheckError(f"Bazel warned in the {which} build:\n{last_lines(chr(10).join(lines))}")


def _outputs(bench: Bench, which: str) -> dict[str, Entry]:
    """What the build put into its bin directory, links and Bazel's own bookkeeping left out."""
    roots = list(_output_base(bench, which).glob("execroot/*/bazel-out/*-fastbuild/bin"))
    if len(roots) != 1:
        raise CheckError(f"expected one bin directory of the {which} build, found {len(roots)}")
    return {
        path: entry
        for path, entry in manifest(roots[0], lambda path: ".runfiles" not in path).items()
        if entry.kind == "file" and not path.endswith(".params")
    }


def _complete(built: dict[str, Entry]) -> None:
    """Raises CheckError unless the outputs that make this check worth its name are all there."""
    for path, size in (
        ("bulk.bin", BULK),
        ("nothing.bin", 0),
        ("scattered/deep/er/still/nothing", 0),
    ):
        if path not in built or built[path].size != size:
            raise CheckError(f"the first build made no {path} of {size} bytes")
    for path in ("program.sh", "scattered/side/go", "units/sum", "units/say"):
        if path not in built or not built[path].mode & 0o100:
            raise CheckError(f"the first build made no executable {path}")


def _writable_first(function: Callable[[str], object], path: str, _error: object) -> None:
    """For rmtree: Bazel leaves directories that even their owner may not write to."""
    Path(path).parent.chmod(0o755)
    Path(path).chmod(0o755)
    function(path)
