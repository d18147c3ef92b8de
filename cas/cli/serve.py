"""``cas serve``: the options of the server, straight from the table in `cas.config`.

Rule: no option is named here; a new field of `Config` is a new flag by itself.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING

from cas import config
from cas.server import supervisor

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

DESCRIPTION = """\
Serves blobs and action results over gRPC (google.bytestream and the Remote Execution API
v2) and HTTP until SIGTERM or SIGINT, which let running calls finish; a second one ends at
once.
Prints "ready grpc=ADDR http=ADDR" on stdout once it serves, and logs to stderr.
"""

EPILOG = """\
Every option can also be set in the file, under its name with underscores
(max_blob_size = "64GiB"), and in the environment, in capitals after CAS_
(CAS_MAX_BLOB_SIZE=64GiB). A flag beats the environment, which beats the file.

ADDR is host:port, [ipv6]:port, unix:/absolute/path or none.
SIZE is bytes, or a number with KiB, MiB, GiB or TiB.

Bazel uses the server with --remote_cache=grpc://127.0.0.1:8980, or http://127.0.0.1:8080
"""


def add(commands: Commands) -> None:
    """Adds the command's parser."""
    parser = commands.add_parser(
        "serve",
        help="run the server",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config",
        metavar="FILE.toml",
        default=argparse.SUPPRESS,
        help="read options from this file (environment: CAS_CONFIG)",
    )
    for option in config.options():
        parser.add_argument(
            option.flag,
            dest=option.name,
            metavar=option.kind.placeholder,
            nargs=None if option.kind.bare is None else "?",
            const=option.kind.bare,
            # Absent and equal to the default are different: only a flag that is there
            # beats the environment.
            default=argparse.SUPPRESS,
            help=f"{option.help} (default: {option.default_text})",
        )
    flags = ["--config", *(option.flag for option in config.options())]
    parser.set_defaults(run=run, flags=flags)


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Serves until told to stop; the exit code."""
    names = {"config", *(option.name for option in config.options())}
    flags = {name: value for name, value in vars(options).items() if name in names}
    return supervisor.run(config.load(flags, environ))
