"""``cas doctor``: what is wrong with a remote, or with the way to it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING

from cas.cli import remote
from cas.errors import ConfigError

if TYPE_CHECKING:
    from cas.cli.remote import Commands

DESCRIPTION = """\
Checks a remote from its address up: whether it is reached, TLS, credentials, capabilities, latency,
a round trip of a blob and of an action result, throughput, and its clock. Says what is wrong and
what to do. Stores a few MiB of random bytes there.

  cas doctor --remote grpcs://cache.example.org/main

Exit code 0 if all is well, 1 if something failed; warnings do not count.
"""


def add(commands: Commands) -> None:
    """Adds the command's parser."""
    parser = remote.add_parser(commands, "doctor", "check a remote", DESCRIPTION, run)
    parser.add_argument(
        "--mib",
        type=int,
        default=32,
        metavar="N",
        help="measure throughput with so many MiB (default: 32)",
    )
    remote.add_function(parser)
    remote.flags(parser)


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Checks; the exit code."""
    import asyncio

    from cas.client import remote as remotes
    from cas.client.doctor import Finding, examine

    if not 1 <= options.mib <= 4096:
        raise ConfigError(f"--mib: {options.mib} is not from 1 to 4096")
    url = remotes.parse(remote.url(options, environ))
    credentials = remote.read_credentials(options, environ)
    function = remote.function(options, environ)
    found: list[Finding] = []

    async def check() -> None:
        async for finding in examine(url, credentials, options.mib << 20, function):
            found.append(finding)
            if not options.json:
                detail = " ".join(finding.detail.split())
                print(f"{finding.verdict:8} {finding.check}: {detail}", flush=True)
                if finding.advice:
                    print(f"{'':8} → {finding.advice}", flush=True)

    try:
        asyncio.run(check())
    except KeyboardInterrupt:
        return remote.INTERRUPTED
    failed = any(finding.verdict == "failed" for finding in found)
    remote.say(
        options,
        ["something is wrong" if failed else f"all is well with {url}"],
        remote=str(url),
        well=not failed,
        checks=[
            {
                "check": finding.check,
                "verdict": finding.verdict,
                "detail": finding.detail,
                "advice": finding.advice,
            }
            for finding in found
        ],
    )
    return 1 if failed else 0
