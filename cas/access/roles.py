"""Roles: what a principal may do in an instance.

Rule: pure.  Rules only grant, so their order does not matter: a principal's role in an
instance is the highest that any rule gives it there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, NamedTuple

ANONYMOUS: Final = "anonymous"
"""The name of whoever brings no credentials.  A rule means him by this very name only: ``*``
is everyone who has proven to be someone."""

_REMEMBERED: Final = 1024
"""Instances per principal whose role is kept: clients can make names up."""


class Role(IntEnum):
    """Each may do what those before it may."""

    NONE = 0
    READ = 1
    WRITE = 2
    ADMIN = 3

    @property
    def label(self) -> str:
        return self.name.lower()


ROLES: Final[Mapping[str, Role]] = {role.label: role for role in Role}


@dataclass(frozen=True, slots=True)
class Rule:
    """Grants `role` to whom it fits.  In a pattern, ``*`` stands for any characters."""

    role: Role
    principal: str = "*"
    """Pattern of a name: ``user:alice``, ``token:ci-*``, ``anonymous``."""
    instance: str = "*"
    """Pattern of an instance's name; the default instance's is empty."""
    claims: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Of a JWT: each of these must be there, with a value that fits one of its patterns."""


class Grant(NamedTuple):
    """A role in the instances that fit a pattern."""

    instance: str
    role: Role


@dataclass(frozen=True, slots=True)
class Principal:
    """Someone who has proven to be it; or `NOBODY`."""

    name: str
    """For people and records, with how it was proven before it: ``user:alice``."""
    others: tuple[str, ...] = ()
    """Further names: a certificate may have several."""
    claims: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """What a JWT says, as far as it is text or lists of it."""
    grants: tuple[Grant, ...] = ()
    """What its own credentials grant."""
    trusted: bool = False
    """Whether an operator listed it: then it may write where there are no rules at all."""


NOBODY: Final = Principal(ANONYMOUS)


@dataclass(frozen=True, slots=True)
class Policy:
    """What an operator has laid down."""

    rules: tuple[Rule, ...] = ()
    anonymous: Role = Role.NONE
    """Of `NOBODY` in every instance."""

    def rights(self, principal: Principal) -> Rights:
        grants = [*principal.grants, *_granted(self.rules, principal)]
        if principal.name == ANONYMOUS:
            grants.append(Grant("*", self.anonymous))
        elif principal.trusted and not self.rules:
            grants.append(Grant("*", Role.WRITE))
        return Rights(grants)


class Rights:
    """What one principal may do."""

    __slots__ = ("_grants", "_known", "everywhere", "highest")

    def __init__(self, grants: Iterable[Grant]) -> None:
        self._grants = tuple(grants)
        self._known: dict[str, Role] = {}
        self.highest = max((grant.role for grant in self._grants), default=Role.NONE)
        """The role that it has somewhere."""
        self.everywhere = max(
            (g.role for g in self._grants if g.instance == "*"), default=Role.NONE
        )
        """The role that it has in all instances, those to come included."""

    def role(self, instance: str) -> Role:
        known = self._known.get(instance)
        if known is None:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            known = self._known[instance] = role_in(instance, self._grants)
        return known


def role_in(instance: str, grants: Iterable[Grant]) -> Role:
    """The highest role that `grants` give in `instance`."""
    fitting = [grant.role for grant in grants if matches(grant.instance, instance)]
    return max(fitting, default=Role.NONE)


def matches(pattern: str, text: str) -> bool:
    """Whether `text` fits `pattern`, whose ``*`` each stand for any characters, or none."""
    head, *rest = pattern.split("*")
    if not rest:
        return pattern == text
    *middle, tail = rest
    end = len(text) - len(tail)
    if end < len(head) or not text.startswith(head) or not text.endswith(tail):
        return False
    at = len(head)
    for part in middle:
        at = text.find(part, at, end)
        if at < 0:
            return False
        at += len(part)
    return True


def _granted(rules: Sequence[Rule], principal: Principal) -> list[Grant]:
    return [Grant(rule.instance, rule.role) for rule in rules if _fits(rule, principal)]


def _fits(rule: Rule, principal: Principal) -> bool:
    if principal.name == ANONYMOUS:
        return rule.principal == ANONYMOUS and not rule.claims
    names = (principal.name, *principal.others)
    if not any(matches(rule.principal, name) for name in names):
        return False
    return all(
        any(matches(pattern, value) for pattern in patterns for value in principal.claims[claim])
        if claim in principal.claims
        else False
        for claim, patterns in rule.claims
    )
