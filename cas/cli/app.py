"""`main`: the ``cas`` command.

Rule: knows which commands there are and turns the errors that end a command into a line
and an exit code: 0 done, 1 failed, 2 asked for wrongly.  No command's options are here.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from cas.cli import (
    admin,
    completion,
    doctor,
    fsck,
    get,
    gocacheprog,
    has,
    pull,
    push,
    put,
    reindex,
    restore,
    save,
    scrub,
    serve,
    stat,
)
from cas.config import suggestion
from cas.errors import CasError, ConfigError

EPILOG = """\
A server:           cas serve --dir /srv/cas
A file there:       cas put --remote grpc://127.0.0.1:8980 FILE, and back: cas get DIGEST -o FILE
A directory:        cas push DIR, and back: cas pull DIGEST DIR
Between CI jobs:    cas restore KEY --fallback PREFIX, and at the end: cas save KEY PATH...

The commands of the client take the remote from CAS_REMOTE as well, and work with any server that
speaks the Remote Execution API or Bazel's HTTP cache protocol. `cas COMMAND --help` tells more.
"""

DISTRIBUTION = "cas-cache"
"""The project's name where packages are installed from."""

COMMANDS = (
    *(serve, stat, scrub, fsck, reindex),
    *(put, get, has, push, pull, save, restore, gocacheprog, doctor),
    *(admin, completion),
)
"""Of the server and its store, of the client, and for the shell.  Each has `add(commands)`, which
adds its parser and sets ``run``."""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, without the usage."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **kwargs})

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message.removeprefix("argument "))


class _Version(argparse.Action):
    """Looks the version up only where it is asked for: that takes longer than the rest."""

    def __call__(self, parser: argparse.ArgumentParser, *unused: object) -> NoReturn:
        import importlib.metadata

        try:
            version = importlib.metadata.version(DISTRIBUTION)
        except importlib.metadata.PackageNotFoundError:
            version = "(not installed)"
        print("cas", version)
        parser.exit()


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; the process's exit code."""

    def run() -> int:
        options = _parse(sys.argv[1:] if arguments is None else arguments)
        code: int = options.run(options, os.environ)
        return code

    return guarded(run)


def guarded(run: Callable[[], int]) -> int:
    """What `run` returns; or a line on stderr and the code of the error that ended it."""
    try:
        return run()
    except ConfigError as error:
        return _fail(error, 2)
    except CasError as error:
        return _fail(error, 1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}", 1)


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = Parser(
        prog="cas",
        description="A content-addressable blob store and remote build cache: the server, the "
        "care of its store, and a client.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add(commands)
    return parser


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    options, unknown = parser().parse_known_args(arguments)
    if unknown:
        # An unknown option's value is unknown too, and may come first.
        first = next((word for word in unknown if word.startswith("-")), unknown[0])
        flag = first.partition("=")[0]
        if not flag.startswith("-"):
            raise ConfigError(f"unexpected argument {flag!r}")
        raise ConfigError(f"unknown option {flag}{suggestion(flag, options.flags)}")
    return options


def _fail(error: CasError | str, code: int) -> int:
    print("cas:", " ".join(str(error).split()), file=sys.stderr)
    return code
