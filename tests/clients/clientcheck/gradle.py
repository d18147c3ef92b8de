"""Gradle's HTTP build cache: tasks that ran once must all be FROM-CACHE, by Gradle's own word, once
outputs and everything of Gradle's own are gone.
"""

import re
import shutil
import uuid
from pathlib import Path

from .check import Bench, Check
from .errors import CheckError, NotServed
from .process import Finished, last_lines, must, run
from .tools import closed_environment
from .tree import difference, files, manifest

_TASKS = 6

_BUILD = """\
@CacheableTask
class Make extends DefaultTask {
    @Input String seed
    @OutputDirectory File made
    @TaskAction void make() {
        [10, 5000, 300000, 3000000].each { size ->
            byte[] bytes = new byte[size]
            new java.security.SecureRandom().nextBytes(bytes)
            new File(made, "random" + size).bytes = bytes
        }
    }
}
(1..%d).each { number ->
    task("make$number", type: Make) {
        seed = file('seed').text + number
        made = new File(buildDir, "made$number")
    }
}
task all { dependsOn((1..%d).collect { "make$it" }) }
"""

_SETTINGS = """\
buildCache {
    local { enabled = false }
    remote(HttpBuildCache) { url = '%s'; push = true }
}
"""


def _check(bench: Bench) -> str:
    root = bench.work / "project"
    root.mkdir()
    (root / "build.gradle").write_text(_BUILD % (_TASKS, _TASKS))
    (root / "seed").write_text(uuid.uuid4().hex)

    first = _run(bench, root, "first", bench.fills_http)
    if _from_cache(first.output):
        raise CheckError(f"the first build should have run all:\n{last_lines(first.output)}")
    _quiet(first, "first")
    made = manifest(root / "build")
    if files(made) != 4 * _TASKS:
        raise CheckError(f"the first build made {files(made)} files, expected {4 * _TASKS}")
    shutil.rmtree(root / "build")
    shutil.rmtree(root / ".gradle")

    second = _run(bench, root, "second", bench.served_http)
    served = _from_cache(second.output)
    if served != _TASKS:
        raise NotServed(f"{served} of {_TASKS} tasks were FROM-CACHE")
    _quiet(second, "second")
    differs = difference(made, manifest(root / "build"))
    if differs:
        raise NotServed(f"outputs differ between the builds:\n{differs}")
    return (
        f"{served} of {_TASKS} tasks served, {files(made)} files identical, "
        f"built in {first.seconds:.1f} s, then in {second.seconds:.1f} s"
    )


CHECKS = (Check("gradle", "gradle", 240, _check, http=True),)


def _run(bench: Bench, root: Path, which: str, address: str) -> Finished:
    home = bench.work / f"home-{which}"
    home.mkdir()
    (root / "settings.gradle").write_text(_SETTINGS % f"http://{address}/cache/")
    env = closed_environment(home) | {"GRADLE_USER_HOME": str(home / "gradle")}
    flags = ["--no-daemon", "--build-cache", "--console=plain"]
    argv: list[str | Path] = [bench.tools.gradle, *flags, "all"]
    log = bench.work / f"{which}.log"
    return must(run(argv, cwd=root, env=env, log=log, clock=bench.clock), f"the {which} build")


def _from_cache(output: str) -> int:
    return len(re.findall(r"^(?:> Task )?:make\d+ FROM-CACHE$", output, re.MULTILINE))


def _quiet(done: Finished, which: str) -> None:
    """Raises CheckError if Gradle gave the cache up: it builds on without it."""
    if "build cache" in done.output and "disabled" in done.output:
        raise CheckError(f"Gradle gave the cache up in the {which} build:\n{done.output}")
