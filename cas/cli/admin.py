"""``cas admin``: what an operator asks of a running server.

Rule: a command below the command for each question; the remote's URL names the instance.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from cas.cli import remote, upstream
from cas.errors import CasError, ConfigError, NotFound

if TYPE_CHECKING:
    from cas.cli.remote import Commands
    from cas.client.admin import AdminClient
    from cas.pb import admin_pb2 as pb

DESCRIPTION = """\
Asks a running server who wrote what, and has it forget things. Takes the role admin there; for
blobs, in all instances. The remote's URL names the instance:

  cas admin who --remote grpc://cache:8980/main HASH
  cas admin list --remote grpc://cache:8980/main --principal 'token:ci-*'

`cas admin upstream` looks after the object store behind servers, and needs none of them.
"""


def add(commands: Commands) -> None:
    """Adds the command's parser and those below it."""
    parser = commands.add_parser(
        "admin",
        help="who wrote what; delete it; verify what is upstream",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    below = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    who = remote.add_parser(below, "who", "tell who wrote an action result", WHO, _who)
    _action(who)
    listing = remote.add_parser(below, "list", "list who wrote action results", LIST, _list)
    listing.add_argument("--principal", default="", metavar="PATTERN", help="only of these")
    delete = remote.add_parser(
        below, "delete-action", "forget an action result", DELETE, _delete_action
    )
    _action(delete)
    blob = remote.add_parser(below, "delete-blob", "forget a blob", BLOB, _delete_blob)
    blob.add_argument("digest", metavar="DIGEST", help="HASH/SIZE")
    drop = remote.add_parser(below, "drop-instance", "forget an instance", DROP, _drop_instance)
    drop.add_argument("--yes", action="store_true", help="do not ask")
    for each in (who, listing, delete, blob, drop):
        remote.flags(each)
    upstream.add(below)


WHO = """\
Prints when an action result was written, by which principal, from which address and by which tool.
"""
LIST = """\
Prints a line for each action result of the instance: when it was written, its hash, by which
principal, from which address, by which tool. --principal takes * for any characters.
"""
DELETE = """\
Forgets an action result: the next build that asks for it runs the action again.
"""
BLOB = """\
Forgets a blob, for all instances: clients find it missing and send it again, and action results
that need it are not served until then.
"""
DROP = """\
Forgets all action results of the instance that the remote's URL names, and all values that HTTP
clients keep under keys in it. Blobs stay until they are evicted, as other instances may need them.
"""


def _action(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", metavar="HASH", help="the action's, with or without /SIZE")


Work = Callable[["AdminClient"], Awaitable[int]]


def _execute(options: argparse.Namespace, environ: Mapping[str, str], work: Work) -> int:
    """As `remote.execute`, with an operator's client."""
    import asyncio

    from cas.client.admin import AdminClient

    where = remote.url(options, environ)
    credentials = remote.read_credentials(options, environ)

    async def run() -> int:
        async with AdminClient(where, credentials) as client:
            return await work(client)

    try:
        return asyncio.run(run())
    except KeyboardInterrupt:
        return remote.INTERRUPTED
    except NotFound as error:
        # The usual advice speaks of what one wants to have.
        print("cas:", error, file=sys.stderr)
        return remote.ABSENT
    except CasError as error:
        raise remote.explained(error, where) from None


def _who(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    async def work(client: AdminClient) -> int:
        found = await client.record(_parsed(options.action))
        remote.say(options, [_line(found)], **_fields(found))
        return 0

    return _execute(options, environ, work)


def _list(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    async def work(client: AdminClient) -> int:
        async for found in client.records(options.principal):
            # One object a line: the list may be long.
            remote.say(options, [_line(found)], **_fields(found))
        return 0

    return _execute(options, environ, work)


def _delete_action(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    async def work(client: AdminClient) -> int:
        await client.delete_action(_parsed(options.action))
        remote.say(options, ["deleted"], deleted=True)
        return 0

    return _execute(options, environ, work)


def _delete_blob(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from cas.client.names import parse_digest

    digest = parse_digest(options.digest)

    async def work(client: AdminClient) -> int:
        await client.delete_blob(digest)
        remote.say(options, ["deleted"], deleted=True)
        return 0

    return _execute(options, environ, work)


def _drop_instance(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    async def work(client: AdminClient) -> int:
        name = client.remote.instance
        if not options.yes and not _confirmed(name):
            return 1
        entries = await client.drop_instance()
        remote.say(options, [f"{entries} entries deleted"], entries=entries)
        return 0

    return _execute(options, environ, work)


def _confirmed(instance: str) -> bool:
    """Asks on the terminal; without one there is nobody to ask."""
    if not sys.stdin.isatty():
        raise ConfigError("drop-instance asks first; give --yes where nobody can answer")
    shown = f"instance {instance!r}" if instance else "the default instance"
    return input(f"Delete all of {shown}? Type yes: ").strip() == "yes"


def _parsed(text: str) -> Any:
    from cas.client.names import parse_digest

    return parse_digest(text if "/" in text else f"{text}/0")


def _line(found: pb.Record) -> str:
    words = (_time(found), found.action_hash, found.principal, found.peer, found.tool)
    return " ".join(word for word in words if word)


def _fields(found: pb.Record) -> dict[str, object]:
    return {
        "action": found.action_hash,
        "written_at": _time(found),
        "principal": found.principal,
        "peer": found.peer,
        "tool": found.tool,
        "references": found.references,
        "result_bytes": found.result_bytes,
    }


def _time(found: pb.Record) -> str:
    return found.written_at.ToJsonString()
