"""Who this node is to the server upstream: headers from files, and from a helper.

Rule: secrets come from files and helpers only, and are in no message, no log and no repr.  Files
are read again when they are old or were refused: tokens of a pod's are replaced while it runs.
"""

from __future__ import annotations

import re
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cas.client.credentials import Authorizer, Credentials, Headers, basic
from cas.client.remote import Remote
from cas.errors import ConfigError
from cas.upstream.nodes import Nodes

READ_SECONDS = 60.0
"""For which what was read is believed."""

_NAME = re.compile(r"[0-9a-z_.-]+")


@dataclass(frozen=True, slots=True)
class Files:
    """Where an operator keeps them.  PEM: `ca` whom to trust, `certificate` and `key` who we are.
    `token` holds a bearer token, `login` a line ``user:password``, `headers` lines ``Name: value``.
    `helper` is a program that speaks Bazel's protocol."""

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    token: Path | None = None
    login: Path | None = None
    headers: Path | None = None
    helper: Path | None = None


class FileIdentity:
    """See `cas.client.credentials.Identity`.  Used on one loop."""

    def __init__(
        self,
        files: Files,
        remote: Remote,
        nodes: Nodes | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises ConfigError, naming a file, but nothing that is in it."""
        self._nodes = nodes
        self._files = files
        self._clock = clock
        helper = "" if files.helper is None else str(files.helper)
        self._helper = Authorizer(Credentials(helper=helper), remote)
        self._headers = read(files)
        self._until = clock() + READ_SECONDS

    async def headers(self) -> Headers:
        if self._clock() >= self._until:
            self._read()
        told = () if self._nodes is None else self._nodes.headers()
        return self._headers + await self._helper.headers() + told

    def refused(self) -> bool:
        return self._read() or self._helper.refused()

    def _read(self) -> bool:
        """Whether the files hold others by now."""
        self._until = self._clock() + READ_SECONDS
        try:
            found = read(self._files)
        except ConfigError:
            # Between two versions of them; those that were read may do.
            return False
        changed = found != self._headers
        self._headers = found
        return changed


def read(files: Files) -> Headers:
    """The headers that the files tell.  Raises ConfigError."""
    if sum(one is not None for one in (files.token, files.login, files.helper)) > 1:
        raise ConfigError("upstream_token, upstream_login, upstream_helper: expected one of them")
    found: list[tuple[str, str]] = []
    if files.token is not None:
        found.append(("authorization", f"Bearer {_line(files.token, 'a token')}"))
    if files.login is not None:
        user, colon, password = _line(files.login, "user:password").partition(":")
        if not colon:
            raise ConfigError(f"{files.login}: expected user:password, in one line")
        found += basic(user, password)
    if files.headers is not None:
        for number, line in enumerate(_text(files.headers).splitlines(), 1):
            name, colon, value = line.partition(":")
            name, value = name.strip().lower(), value.strip()
            if not line.strip() or line.startswith("#"):
                continue
            if not (colon and _NAME.fullmatch(name) and _is_plain(value)) or name.endswith("-bin"):
                raise ConfigError(
                    f"{files.headers}: line {number} is no header; expected Name: value"
                )
            found.append((name, value))
    return tuple(found)


def check_pem(files: Files) -> None:
    """Raises ConfigError where the certificates cannot be used."""
    if (files.certificate is None) != (files.key is None):
        raise ConfigError("upstream_cert and upstream_key belong together")
    context = ssl.create_default_context()
    if files.ca is not None:
        with _named(files.ca):
            context.load_verify_locations(files.ca)
    if files.certificate is not None:
        with _named(files.certificate):
            context.load_cert_chain(files.certificate, files.key)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from error


def _line(path: Path, expected: str) -> str:
    line = _text(path).strip()
    if not line or "\n" in line or not _is_plain(line):
        raise ConfigError(f"{path}: expected {expected}, in one line of printable ASCII")
    return line


def _is_plain(text: str) -> bool:
    return text.isascii() and text.isprintable()


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: expected text") from None
