"""From headers and certificates to who calls.

Rule: what was checked is remembered, under a keyed hash of what was sent, for a bounded time
and number; whatever is checked, is checked on threads of its own, a bounded number at a time.
A refusal says what is wrong with the credentials and repeats nothing of them.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from cas.access import tokens
from cas.access.files import Watched, WatchedFile, Watcher
from cas.access.roles import NOBODY, Policy, Principal, Rights
from cas.access.settings import AccessSettings
from cas.errors import LimitExceeded, Unauthenticated

if TYPE_CHECKING:
    from cas.access.htpasswd import Users
    from cas.access.jwt import Issuers

KEPT: Final = 300.0
"""Seconds for which credentials that were right are not checked again."""
KEPT_REFUSED: Final = 10.0
"""The same of wrong ones: a client that repeats them costs nothing."""
REMEMBERED: Final = 4096
"""Credentials of either sort."""
THREADS: Final = 2
"""Passwords checked at a time, each for as long as bcrypt was told to; as many threads more are
for what else there is, which a flood of wrong passwords must not hold up."""
MAX_WAITING: Final = 128
"""Checks of either sort that are begun or wait; further credentials that are not known are
refused."""
MAX_HEADER: Final = 16 << 10
"""Characters of an Authorization header that are looked at."""

K = TypeVar("K")
V = TypeVar("V")

log = logging.getLogger("cas.access")


class Caller(NamedTuple):
    """Who calls."""

    principal: Principal
    rights: Rights
    until: float
    """When it has to prove it again, by the authenticator's clock."""

    @property
    def name(self) -> str:
        return self.principal.name


class Check:
    """A check under way: a `Pending` (`cas.rpc.handler`) that brings a `Caller`, or fails with
    Unauthenticated.  All who bring the same credentials meanwhile wait for the same one."""

    def __init__(self, future: Future[Caller]) -> None:
        self.future = future

    @property
    def done(self) -> bool:
        return self.future.done()

    def add_done_callback(self, callback: Callable[[], None], /) -> None:
        self.future.add_done_callback(lambda _: callback())

    def result(self) -> Caller:
        return self.future.result()


class Authenticator:
    """Knows who calls.  Any thread may ask."""

    def __init__(
        self,
        policy: Policy,
        *,
        users: WatchedFile[Users] | None = None,
        bearers: WatchedFile[tokens.Tokens] | None = None,
        issuers: Issuers | None = None,
        watched: Sequence[Watched] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`watched` are the parts that change on their own."""
        self._policy = policy
        self._users = users
        self._bearers = bearers
        self._issuers = issuers
        self._clock = clock
        self.anonymous = Caller(NOBODY, policy.rights(NOBODY), float("inf"))
        schemes = [("Basic", users), ("Bearer", bearers or issuers)]
        self.schemes = tuple(scheme for scheme, source in schemes if source is not None)
        """Of the Authorization header that are looked at."""
        self._secret = os.urandom(32)
        self._lock = threading.Lock()
        """Of all that follows, but for reading `_known` and `_refused`."""
        self._generation = 0
        self._known: dict[bytes, Caller] = {}
        self._refused: dict[bytes, tuple[str, float]] = {}
        self._certificates: dict[tuple[str, ...], Caller] = {}
        self._passwords = _Lane("access-passwords")
        self._others = _Lane("access")
        self._watcher = Watcher(watched, self.forget) if watched else None

    def close(self) -> None:
        """Ends its threads; checks that were not begun fail."""
        if self._watcher is not None:
            self._watcher.close()
        self._passwords.close()
        self._others.close()

    def forget(self) -> None:
        """Has all credentials checked again: something that they stand on has changed."""
        with self._lock:
            self._generation += 1
            self._known = {}
            self._refused = {}

    def caller(self, header: str | None, certificate: tuple[str, ...] = ()) -> Caller | Check:
        """Who sends this Authorization header (None for none) over a connection whose client's
        certificate has these names.  The header counts before the certificate; where no kind of
        header is served there is nothing that it could be wrong by, and it does not count.

        Raises Unauthenticated, or LimitExceeded when too many checks are under way.
        """
        if header is None or not self.schemes:
            return self._certified(certificate) if certificate else self.anonymous
        if len(header) > MAX_HEADER:
            raise Unauthenticated(f"the Authorization header has more than {MAX_HEADER} characters")
        if not header.isascii():
            raise Unauthenticated("the Authorization header is not ASCII")
        # Keyed: what is in memory is of no use to whoever reads it.
        key = hashlib.blake2b(header.encode(), digest_size=16, key=self._secret).digest()
        known = self._known.get(key)
        if known is not None and known.until > self._clock():
            return known
        refused = self._refused.get(key)
        if refused is not None and refused[1] > self._clock():
            raise Unauthenticated(refused[0])
        return self._check(key, header)

    def _check(self, key: bytes, header: str) -> Check:
        with self._lock:
            lane = self._passwords if header[:5].lower() == "basic" else self._others
            running = lane.running.get(key)
            if running is not None:
                return running
            if len(lane.running) >= MAX_WAITING:
                raise LimitExceeded(
                    f"{MAX_WAITING} credentials are being checked, the most at a time"
                )
            future = lane.threads.submit(self._checked, key, header, self._generation)
            begun = lane.running[key] = Check(future)
        future.add_done_callback(lambda _: lane.running.pop(key, None))
        return begun

    def _checked(self, key: bytes, header: str, generation: int) -> Caller:
        try:
            principal, until = self._proven(header)
        except Unauthenticated as error:
            with self._lock:
                if generation == self._generation:
                    _remember(self._refused, key, (str(error), self._clock() + KEPT_REFUSED))
            log.debug("credentials refused", extra={"reason": str(error)})
            raise
        caller = self._admitted(principal, until)
        with self._lock:
            if generation == self._generation:
                _remember(self._known, key, caller)
        return caller

    def _admitted(self, principal: Principal, until: float) -> Caller:
        """`until` is by the calendar's clock."""
        kept = min(KEPT, until - time.time())
        return Caller(principal, self._policy.rights(principal), self._clock() + kept)

    def _proven(self, header: str) -> tuple[Principal, float]:
        """The principal, and until when.  Slow."""
        scheme, _, rest = header.partition(" ")
        rest = rest.strip()
        kind = scheme.lower()
        if kind == "basic" and self._users is not None:
            return self._user(rest, self._users.value), float("inf")
        if kind == "bearer":
            if self._bearers is not None:
                name = self._bearers.value.name(rest)
                if name is not None:
                    return Principal(f"token:{name}", trusted=True), float("inf")
            if self._issuers is not None:
                return self._issuers.verify(rest)
            if self._bearers is not None:
                raise Unauthenticated("the token is not one that is known here")
        raise Unauthenticated(
            f"the Authorization header's scheme is not served; expected {' or '.join(self.schemes)}"
        )

    def _user(self, encoded: str, users: Users) -> Principal:
        try:
            name, colon, password = base64.b64decode(encoded, validate=True).partition(b":")
            user = name.decode()
        except (binascii.Error, ValueError):
            colon = b""
        if not colon:
            raise Unauthenticated("the Basic credentials cannot be read")
        if not users.verify(user, password):
            raise Unauthenticated("there is no such user, or the password is wrong")
        return Principal(f"user:{user}", trusted=True)

    def _certified(self, names: tuple[str, ...]) -> Caller:
        known = self._certificates.get(names)
        if known is None:
            first, *others = (f"cert:{name}" for name in names)
            principal = Principal(first, tuple(others), trusted=True)
            known = Caller(principal, self._policy.rights(principal), float("inf"))
            with self._lock:
                _remember(self._certificates, names, known)
        return known


class _Lane:
    """Checks of one sort."""

    def __init__(self, name: str) -> None:
        self.running: dict[bytes, Check] = {}
        """By what they check."""
        self.threads = ThreadPoolExecutor(THREADS, thread_name_prefix=name)

    def close(self) -> None:
        self.threads.shutdown(cancel_futures=True)


def open_authenticator(settings: AccessSettings) -> Authenticator:
    """Reads what `settings` name.  Raises ConfigError."""
    # Each library only where it is used: together they take as much memory as a worker's own code.
    users = bearers = issuers = None
    watched: list[Watched] = []
    if settings.htpasswd is not None:
        from cas.access import htpasswd

        users = WatchedFile(settings.htpasswd, htpasswd.parse)
        watched.append(users)
    if settings.tokens is not None:
        bearers = WatchedFile(settings.tokens, tokens.parse)
        watched.append(bearers)
    if settings.jwt:
        from cas.access import jwt

        opened = [jwt.open_issuer(each) for each in settings.jwt]
        issuers = jwt.Issuers(opened)
        watched += [issuer.source for issuer in opened]
    return Authenticator(
        settings.policy, users=users, bearers=bearers, issuers=issuers, watched=watched
    )


def _remember(kept: dict[K, V], key: K, value: V) -> None:
    """The oldest gives way."""
    if len(kept) >= REMEMBERED:
        del kept[next(iter(kept))]
    # In the order of their coming, also where it was there before.
    kept.pop(key, None)
    kept[key] = value
