"""What an operator says about access, as values.

Rule: light, so that processes which serve nothing can hold them: no library is imported here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cas.access.roles import Policy

ALGORITHMS: Final = ("RS256", "ES256", "EdDSA")
"""Signatures of JWTs that are served: asymmetric ones only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JwtSettings:
    """One issuer of JWTs (RFC 7519)."""

    name: str = "jwt"
    """What the names of its principals begin with: ``jwt:…``."""
    issuer: str
    """The `iss` that its tokens have."""
    audience: tuple[str, ...]
    """`aud` must hold one of these."""
    jwks: str
    """Its keys (RFC 7517): a file's path, or an https URL."""
    algorithms: tuple[str, ...] = ALGORITHMS
    leeway: float = 30.0
    """Seconds that its clock and ours may differ by."""
    principal_claim: str = "sub"
    """The claim that names the principal."""
    role_claim: str = ""
    """A claim that is a role's name, or a list that holds some; empty: none is."""
    instance_claim: str = ""
    """A claim that names the instances for which `role_claim` counts; empty: all of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessSettings:
    """Who may do what, and how he proves to be who he is."""

    htpasswd: Path | None = None
    tokens: Path | None = None
    jwt: tuple[JwtSettings, ...] = ()
    policy: Policy
