"""JSON Web Tokens (RFC 7519): verified, and read as principals.

Rule: RFC 8725's advice.  The algorithm is the key's, never the token's choice; issuer,
audience and expiry must be there and right; header fields that name keys (`jwk`, `jku`,
`x5c`, `x5u`) are not looked at, and one with `crit` is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jwt

from cas.access import keys
from cas.access.files import WatchedFile
from cas.access.keys import FileKeys, Source, UrlKeys
from cas.access.roles import ROLES, Grant, Principal, Role
from cas.access.settings import JwtSettings
from cas.errors import ConfigError, Unauthenticated

MAX_BYTES = 16 << 10
"""Largest token looked at."""

_MAX_VALUES = 1_000
"""Of one claim."""


class Verified(NamedTuple):
    """A principal, and until when its token is good (seconds since the epoch)."""

    principal: Principal
    until: float


class Issuer:
    """One issuer's settings and keys."""

    def __init__(self, settings: JwtSettings, source: Source) -> None:
        self.settings = settings
        self.source = source

    def verify(self, token: str) -> Verified:
        """Raises Unauthenticated with what is wrong; nothing of the token is in it."""
        settings = self.settings
        header = _header(token)
        algorithm = header.get("alg")
        if not isinstance(algorithm, str) or algorithm not in settings.algorithms:
            raise Unauthenticated(
                f"the token's signature algorithm is not one of {', '.join(settings.algorithms)}"
            )
        kid = header.get("kid")
        key = self.source.find(kid if isinstance(kid, str) else None, algorithm)
        if key is None:
            raise Unauthenticated("the token is signed with a key that is not its issuer's")
        try:
            claims = jwt.decode(
                token,
                key.key,
                algorithms=[key.algorithm],
                audience=settings.audience,
                issuer=settings.issuer,
                leeway=settings.leeway,
                options={"require": ["exp", "iss", "aud"]},
            )
        except jwt.PyJWTError as error:
            raise Unauthenticated(_why(error)) from None
        return Verified(principal_of(settings, claims), float(claims["exp"]) + settings.leeway)


class Issuers:
    """Picks the issuer of a token."""

    def __init__(self, issuers: Sequence[Issuer]) -> None:
        self._by_name = {issuer.settings.issuer: issuer for issuer in issuers}

    def verify(self, token: str) -> Verified:
        """Raises Unauthenticated."""
        if len(token) > MAX_BYTES:
            raise Unauthenticated(f"the token has more than {MAX_BYTES} bytes")
        try:
            # Only to know whose keys to try; nothing of it is believed.
            said = jwt.decode(token, options={"verify_signature": False}).get("iss")
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
            raise Unauthenticated("the token is neither a known one nor a JWT") from None
        issuer = self._by_name.get(said) if isinstance(said, str) else None
        if issuer is None:
            raise Unauthenticated("the token's issuer is not one that is trusted here")
        return issuer.verify(token)


def open_issuer(settings: JwtSettings) -> Issuer:
    """Raises ConfigError."""
    if "://" not in settings.jwks:
        path = Path(settings.jwks).expanduser()
        return Issuer(settings, FileKeys(WatchedFile(path, keys.parse)))
    try:
        keys.check_url(settings.jwks)
    except ValueError as error:
        raise ConfigError(f"jwks of {settings.name}: {error}") from None
    return Issuer(settings, UrlKeys(settings.jwks))


def principal_of(settings: JwtSettings, claims: Mapping[str, Any]) -> Principal:
    """The principal of verified claims.  Raises Unauthenticated when none is named."""
    texts = {name: values for name, value in claims.items() if (values := _texts(value))}
    named = claims.get(settings.principal_claim)
    if not isinstance(named, str) or not named or not named.isprintable():
        raise Unauthenticated(f"the token's {settings.principal_claim} claim names nobody")
    role = max(
        (ROLES[text] for text in texts.get(settings.role_claim, ()) if text in ROLES),
        default=Role.NONE,
    )
    grants: tuple[Grant, ...] = ()
    if role:
        # A claim names instances as they are: a star in it is a star of a name, hence nobody's.
        instances: tuple[str, ...] = ("*",)
        if settings.instance_claim:
            found = texts.get(settings.instance_claim, ())
            instances = tuple(text for text in found if "*" not in text)
        grants = tuple(Grant(instance, role) for instance in instances)
    return Principal(f"{settings.name}:{named}", claims=texts, grants=grants)


def _texts(value: Any) -> tuple[str, ...]:
    """A claim's values as text: of a text, a truth or a number itself, of a list its items."""
    items = value[:_MAX_VALUES] if isinstance(value, list) else [value]
    found = []
    for item in items:
        if isinstance(item, bool):
            found.append("true" if item else "false")
        elif isinstance(item, (str, int)):
            found.append(str(item))
    return tuple(found)


def _header(token: str) -> Mapping[str, Any]:
    try:
        header: Mapping[str, Any] = jwt.get_unverified_header(token)
    except jwt.PyJWTError:
        raise Unauthenticated("the token's header cannot be read") from None
    if "crit" in header:
        raise Unauthenticated("the token's header has a crit field; expected none")
    return header


def _why(error: jwt.PyJWTError) -> str:
    for kind, why in _REASONS.items():
        if isinstance(error, kind):
            return why
    return "the token is not valid"


_REASONS: dict[type[jwt.PyJWTError], str] = {
    jwt.ExpiredSignatureError: "the token has expired",
    jwt.ImmatureSignatureError: "the token is not valid yet",
    jwt.InvalidAudienceError: "the token is for another audience",
    jwt.InvalidIssuerError: "the token's issuer is not one that is trusted here",
    jwt.MissingRequiredClaimError: "the token lacks one of the claims exp, iss and aud",
    jwt.InvalidSignatureError: "the token's signature is wrong",
}
