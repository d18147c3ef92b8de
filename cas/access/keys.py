"""An issuer's public keys (JWKS, RFC 7517), from a file or a URL.

Rule: a key is used for the one signature algorithm that its type has here, so that no token
can choose; keys for anything else, symmetric ones above all, are left out.
"""

from __future__ import annotations

import json
import logging
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from cas.access.files import WatchedFile, reason

MAX_BYTES = 1 << 20
"""Largest answer read."""
TIMEOUT = 10.0
"""Seconds for one answer."""
KEPT = 300.0
"""Seconds between two answers asked for."""
RETRY = 10.0
"""Seconds until it is asked for again after it failed."""
EARLIEST = 30.0
"""Seconds between two answers that tokens with unknown keys may cause."""

MIN_RSA_BITS = 2048

log = logging.getLogger("cas.access")


class Key(NamedTuple):
    """A public key, and the one algorithm that it is for."""

    algorithm: str
    key: Any


class KeySet:
    """Keys by their id."""

    def __init__(self, named: dict[str, Key], unnamed: list[Key]) -> None:
        self._named = named
        self._all = [*named.values(), *unnamed]

    def find(self, kid: str | None, algorithm: str) -> Key | None:
        """The key `kid`; without an id, the only one for `algorithm`, if it is."""
        if kid is not None:
            found = self._named.get(kid)
            return found if found is not None and found.algorithm == algorithm else None
        fitting = [key for key in self._all if key.algorithm == algorithm]
        return fitting[0] if len(fitting) == 1 else None


class Source(Protocol):
    """Where keys come from."""

    def find(self, kid: str | None, algorithm: str) -> Key | None:
        """As `KeySet.find`.  May wait for the network."""

    def refresh(self) -> bool: ...


class FileKeys:
    """A JWKS file."""

    def __init__(self, file: WatchedFile[KeySet]) -> None:
        self._file = file

    def find(self, kid: str | None, algorithm: str) -> Key | None:
        return self._file.value.find(kid, algorithm)

    def refresh(self) -> bool:
        return self._file.refresh()


class UrlKeys:
    """A JWKS URL: asked in the background, and when a token names a key that is not known."""

    def __init__(self, url: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._url = url
        self._clock = clock
        self._keys = KeySet({}, [])
        self._text = ""
        self._due = 0.0
        self._asked = float("-inf")
        self._failing = False
        self._lock = threading.Lock()

    def find(self, kid: str | None, algorithm: str) -> Key | None:
        found = self._keys.find(kid, algorithm)
        if found is None and self._clock() - self._asked >= EARLIEST:
            # Who finds it being asked already does not wait: he is refused, and may try again.
            self._ask()
            found = self._keys.find(kid, algorithm)
        return found

    def refresh(self) -> bool:
        return self._clock() >= self._due and self._ask()

    def _ask(self) -> bool:
        """Whether the keys are others now."""
        if not self._lock.acquire(blocking=False):
            return False
        try:
            self._asked = self._clock()
            try:
                text = fetch(self._url)
                keys = parse(text)
            except (OSError, ValueError) as error:
                self._due = self._clock() + RETRY
                if not self._failing:
                    log.error(
                        "keys cannot be fetched; those fetched before stay in force",
                        extra={"url": self._url, "reason": _why(error)},
                    )
                self._failing = True
                return False
            self._due = self._clock() + KEPT
            self._failing = False
            new = text != self._text
            self._keys, self._text = keys, text
            return new
        finally:
            self._lock.release()


def parse(text: str) -> KeySet:
    """Raises ValueError when it is no JWKS, or has no key that can be used."""
    try:
        entries = json.loads(text)["keys"]
        if not isinstance(entries, list):
            raise TypeError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError('not a JWKS: expected {"keys": […]}') from None
    named: dict[str, Key] = {}
    unnamed = []
    for entry in entries:
        key = _key(entry)
        if key is None:
            continue
        kid = entry.get("kid")
        if isinstance(kid, str):
            named[kid] = key
        else:
            unnamed.append(key)
    if not named and not unnamed:
        raise ValueError("no key for RS256 (of 2048 bits or more), ES256 or EdDSA is in it")
    return KeySet(named, unnamed)


def _key(entry: Any) -> Key | None:
    if not isinstance(entry, dict) or entry.get("kty") not in ("RSA", "EC", "OKP"):
        return None
    if entry.get("use", "sig") != "sig" or "d" in entry:
        return None
    try:
        key = jwt.PyJWK(entry).key
    except (jwt.PyJWTError, ValueError, TypeError):
        return None
    algorithm = None
    if isinstance(key, rsa.RSAPublicKey) and key.key_size >= MIN_RSA_BITS:
        algorithm = "RS256"
    elif isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        algorithm = "ES256"
    elif isinstance(key, ed25519.Ed25519PublicKey):
        algorithm = "EdDSA"
    if algorithm is None or entry.get("alg", algorithm) not in (algorithm, "Ed25519"):
        return None
    return Key(algorithm, key)


def check_url(url: str) -> None:
    """Raises ValueError unless `url` is safe to fetch keys from."""
    parts = urllib.parse.urlsplit(url)
    if parts.username is not None or not parts.hostname:
        raise ValueError("expected an https URL without a password")
    local = parts.hostname in ("localhost", "127.0.0.1", "::1")
    if parts.scheme != "https" and not (parts.scheme == "http" and local):
        raise ValueError("expected an https URL (http is for this machine only)")


def fetch(url: str) -> str:
    """Raises OSError or ValueError."""
    request = urllib.request.Request(url, headers={"Accept": "application/json"})
    opener = urllib.request.build_opener(_NoRedirects)
    with opener.open(request, timeout=TIMEOUT) as answer:
        raw: bytes = answer.read(MAX_BYTES + 1)
    if len(raw) > MAX_BYTES:
        raise ValueError(f"the answer is larger than {MAX_BYTES} bytes")
    return raw.decode()


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Keys come from where the operator said, and from nowhere else."""

    def redirect_request(self, *unused: Any) -> None:
        return None


def _why(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"status {error.code}"
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, Exception):
        return reason(error.reason)
    if isinstance(error, UnicodeDecodeError):
        return "not UTF-8"
    return reason(error)
