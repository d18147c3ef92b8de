"""Who we are to a remote: certificates, tokens, passwords, and helpers that know them.

Rule: secrets come from files, variables and helpers, never from a command line, where every
user of the machine can read them; they are in no message and no repr.  The helper is Bazel's
protocol (EngFlow's credential-helper-spec): ``HELPER get``, a URI as JSON on its stdin,
headers and perhaps an expiry as JSON on its stdout.
"""

from __future__ import annotations

import asyncio
import base64
import datetime
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from cas.client.errors import Unauthenticated
from cas.client.remote import Remote

HELPER_SECONDS = 30.0
"""What a helper may take."""

KEPT_SECONDS = 30 * 60.0
"""How long headers are kept whose helper names no expiry (Bazel's default)."""

EARLY_SECONDS = 30.0
"""Headers are asked for anew this long before they expire."""

Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Credentials:
    """`ca`, `certificate` and `key` are PEM files: whom to trust, and who we are (mTLS).
    Of `token`, `user` and `helper` the first that is set is sent."""

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    token: str = field(default="", repr=False)
    user: str = ""
    password: str = field(default="", repr=False)
    helper: str = ""


class Identity(Protocol):
    """Who tells the headers of each request."""

    async def headers(self) -> Headers:
        """Lower-case names and values."""
        ...

    def refused(self) -> bool:
        """The remote did not take them; whether asking again may change anything."""
        ...


def basic(user: str, password: str) -> Headers:
    secret = base64.b64encode(f"{user}:{password}".encode()).decode()
    return (("authorization", f"Basic {secret}"),)


class Authorizer:
    """The headers for one remote; asks the helper again when they expire or were refused."""

    def __init__(self, credentials: Credentials, remote: Remote) -> None:
        self._helper = ""
        self._uri = remote.origin
        self._headers: Headers = ()
        self._until = 0.0
        self._asking = asyncio.Lock()
        if credentials.token:
            self._headers = (("authorization", f"Bearer {credentials.token}"),)
        elif credentials.user or remote.user:
            named = credentials if credentials.user else remote
            self._headers = basic(named.user, named.password)
        else:
            self._helper = credentials.helper

    async def headers(self) -> Headers:
        """Lower-case names and values."""
        if not self._helper or time.monotonic() < self._until:
            return self._headers
        async with self._asking:
            if time.monotonic() >= self._until:
                self._headers, seconds = await ask(self._helper, self._uri)
                self._until = time.monotonic() + seconds
        return self._headers

    def refused(self) -> bool:
        """Forgets what a helper said; whether asking again may change anything."""
        fresh = self._helper != "" and self._until > 0
        self._until = 0.0
        return fresh


async def ask(helper: str, uri: str) -> tuple[Headers, float]:
    """Runs a credential helper: its headers, and for how many seconds they hold."""
    request = json.dumps({"uri": uri}).encode()
    try:
        process = await asyncio.create_subprocess_exec(
            helper,
            "get",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    except OSError as error:
        raise Unauthenticated(f"credential helper {helper}: {error.strerror}") from None
    try:
        out, said = await asyncio.wait_for(process.communicate(request), HELPER_SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise Unauthenticated(
            f"credential helper {helper} did not answer within {HELPER_SECONDS:.0f} s"
        ) from None
    if process.returncode:
        last = (said.decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
        raise Unauthenticated(
            f"credential helper {helper} ended with code {process.returncode}: {last}"
        )
    return read_answer(helper, out)


def read_answer(helper: str, answer: bytes) -> tuple[Headers, float]:
    """A helper's answer as headers and seconds; raises Unauthenticated when it is none."""
    try:
        said = json.loads(answer)
        headers = tuple(
            (name.lower(), value)
            for name, values in said.get("headers", {}).items()
            for value in values
        )
        seconds = KEPT_SECONDS
        if expires := said.get("expires"):
            until = datetime.datetime.fromisoformat(expires)
            now = datetime.datetime.now(datetime.UTC)
            seconds = (until - now).total_seconds() - EARLY_SECONDS
    except (ValueError, TypeError, AttributeError):
        raise Unauthenticated(
            f'credential helper {helper} answered {answer[:80]!r}; expected {{"headers": '
            '{"NAME": ["VALUE"]}, "expires": "RFC 3339 time"}'
        ) from None
    return headers, seconds
