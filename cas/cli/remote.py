"""What every command that talks to a remote has in common.

Rule: its options, where their values come from (a flag beats the environment), the way from
what went wrong to a line that says what to do next, and the exit codes.  The client itself
is imported only when a command runs.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cas.errors import CasError, ConfigError, InvalidArgument

if TYPE_CHECKING:
    from cas.client.client import AsyncClient
    from cas.client.credentials import Credentials
    from cas.digest import Digest, Function

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

ABSENT = 3
"""Exit code: what was asked for is not there; nothing went wrong."""

INTERRUPTED = 130

EPILOG = """\
Where the remote is and who we are:
  --remote URL               CAS_REMOTE                  grpc://HOST:PORT[/INSTANCE], grpcs://…,
                                                         http://…, https://… (Bazel's HTTP cache)
                                                         or unix:/PATH[?instance=NAME]
  --ca FILE                  CAS_REMOTE_CA               trust this authority (PEM) for TLS
  --cert FILE --key FILE     CAS_REMOTE_CERT, …_KEY      our certificate, for mTLS
  --token-file FILE          CAS_REMOTE_TOKEN_FILE       a bearer token; CAS_REMOTE_TOKEN has
                                                         the token itself
  --user NAME                CAS_REMOTE_USER             with the password in CAS_REMOTE_PASSWORD
  --credential-helper PATH   CAS_REMOTE_HELPER           a program that speaks Bazel's protocol

Exit codes: 0 done, 1 failed, 2 asked for wrongly, 3 not there, 130 interrupted.
"""

_FLAGS = {
    "--remote": ("URL", "the cache; see below"),
    "--ca": ("FILE", "trust this authority"),
    "--cert": ("FILE", "our certificate"),
    "--key": ("FILE", "its key"),
    "--token-file": ("FILE", "a bearer token"),
    "--user": ("NAME", "for a password"),
    "--credential-helper": ("PATH", "a program that knows the credentials"),
}


def add_parser(
    commands: Commands,
    name: str,
    help: str,
    description: str,
    run: Callable[[argparse.Namespace, Mapping[str, str]], int],
    epilog: str = "",
) -> argparse.ArgumentParser:
    """A command's parser with the common options; the caller adds its own."""
    parser = commands.add_parser(
        name,
        help=help,
        description=description,
        epilog=f"{epilog}\n{EPILOG}" if epilog else EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    common = parser.add_argument_group("remote")
    for flag, (metavar, text) in _FLAGS.items():
        # Commands have arguments of their own with such names: save's KEY.
        dest = "remote_" + flag[2:].replace("-", "_")
        common.add_argument(flag, dest=dest, metavar=metavar, help=text)
    common.add_argument(
        "--compression",
        action=argparse.BooleanOptionalAction,
        help="zstd on the way, where offered; by default unless the remote is on this machine",
    )
    common.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    common.add_argument("--quiet", action="store_true", help="show no progress")
    parser.set_defaults(run=run, parser=parser)
    return parser


def add_function(parser: argparse.ArgumentParser) -> None:
    """Adds the option by which a command is told how to name what it stores."""
    parser.add_argument(
        "--digest-function",
        metavar="NAME",
        help="how blobs are named: sha256 (default), blake3 and others that the remote takes; "
        "CAS_REMOTE_DIGEST_FUNCTION",
    )


def function(options: argparse.Namespace, environ: Mapping[str, str]) -> Function:
    """The digest function that was asked for; raises InvalidArgument."""
    from cas.client.names import function_of

    given = options.digest_function or environ.get("CAS_REMOTE_DIGEST_FUNCTION") or "sha256"
    return function_of(given.lower())


def flags(parser: argparse.ArgumentParser) -> None:
    """Tells which options there are, once all are added, for suggestions."""
    parser.set_defaults(
        flags=[name for action in parser._actions for name in action.option_strings]
    )


def execute(
    options: argparse.Namespace,
    environ: Mapping[str, str],
    work: Callable[[AsyncClient], Awaitable[int]],
) -> int:
    """Runs `work` with a client; the exit code."""
    import asyncio
    import gc

    from cas.client.client import AsyncClient

    where = url(options, environ)
    credentials = read_credentials(options, environ)
    # Describing a tree makes hundreds of thousands of objects that all live until the end.
    gc.set_threshold(200_000, 50, 50)

    async def run() -> int:
        async with AsyncClient(where, credentials, zstd=options.compression) as client:
            return await work(client)

    try:
        return asyncio.run(run())
    except KeyboardInterrupt:
        return INTERRUPTED
    except CasError as error:
        raise explained(error, where) from None


def url(options: argparse.Namespace, environ: Mapping[str, str]) -> str:
    """The remote's URL; raises ConfigError if nobody gave one."""
    given = options.remote_remote or environ.get("CAS_REMOTE")
    if not given:
        raise ConfigError("no remote; give --remote URL or set CAS_REMOTE, say to grpc://HOST:PORT")
    return str(given)


def digest(text: str) -> Digest:
    """A digest that someone asks for; raises ConfigError if it is none."""
    from cas.client.names import parse_digest

    try:
        return parse_digest(text)
    except InvalidArgument as error:
        raise ConfigError(str(error)) from None


def explained(error: CasError, url: str) -> CasError:
    """The error, with what to do about it."""
    from cas.client import errors
    from cas.client.remote import parse
    from cas.errors import DigestMismatch, NotFound

    remote = parse(url)
    advice: dict[type[CasError], str] = {
        errors.Unavailable: f"is the remote running and reachable? "
        f"`cas doctor --remote {remote}` looks closer",
        errors.Unauthenticated: "set CAS_REMOTE_TOKEN, --token-file, --user or --credential-helper",
        errors.PermissionDenied: "these credentials do not allow it; ask whoever runs the "
        "remote, or use others",
        errors.Unsupported: f"`cas doctor --remote {remote}` lists what it can do",
        NotFound: "it was never stored there, or was evicted since",
        DigestMismatch: "what arrived is not what was asked for; try again, and tell whoever "
        "runs the remote",
    }
    for kind, text in advice.items():
        if isinstance(error, kind):
            return type(error)(f"{remote}: {error}. {text[0].upper()}{text[1:]}.")
    if isinstance(error, errors.RemoteError):
        return type(error)(f"{remote}: {error}")
    return error


def read_credentials(options: argparse.Namespace, environ: Mapping[str, str]) -> Credentials:
    """Raises ConfigError for a file that cannot be read, OSError never."""
    from cas.client.credentials import Credentials

    def value(flag: str | None, variable: str) -> str:
        return flag or environ.get(f"CAS_REMOTE_{variable}", "")

    def file(flag: str | None, variable: str) -> Path | None:
        name = value(flag, variable)
        if name and not os.access(name, os.R_OK):
            raise ConfigError(f"cannot read {name}, which CAS_REMOTE_{variable} or its flag names")
        return Path(name) if name else None

    token = environ.get("CAS_REMOTE_TOKEN", "")
    if token_file := file(options.remote_token_file, "TOKEN_FILE"):
        token = token_file.read_text().strip()
    certificate, key = file(options.remote_cert, "CERT"), file(options.remote_key, "KEY")
    if (certificate is None) != (key is None):
        raise ConfigError("--cert and --key belong together")
    return Credentials(
        ca=file(options.remote_ca, "CA"),
        certificate=certificate,
        key=key,
        token=token,
        user=value(options.remote_user, "USER"),
        password=environ.get("CAS_REMOTE_PASSWORD", ""),
        helper=value(options.remote_credential_helper, "HELPER"),
    )


def say(options: argparse.Namespace, lines: Sequence[str], **fields: Any) -> None:
    """What a command answers on stdout: lines, or the fields as JSON."""
    with suppress(BrokenPipeError):
        if options.json:
            print(json.dumps(fields))
        else:
            for line in lines:
                print(line)


def tell_github(environ: Mapping[str, str], **outputs: str | bool) -> None:
    """Sets outputs of a GitHub Actions step, where there is one."""
    file = environ.get("GITHUB_OUTPUT")
    if not file:
        return
    with open(file, "a", encoding="utf-8") as out:
        for name, value in outputs.items():
            text = str(value).lower() if isinstance(value, bool) else value
            out.write(f"{name.replace('_', '-')}={text}\n")
