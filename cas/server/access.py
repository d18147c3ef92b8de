"""A configuration's rules of access, as a process that listens applies them.

Rule: from options to `cas.access`.  What an anonymous caller may do where the operator does not
say is decided here, by the address that is listened on and nothing else: a caller's own address
says little, since every caller of a proxy on this machine comes from this machine.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cas.access.roles import ROLES, Policy, Role
from cas.access.settings import AccessSettings
from cas.config import Config
from cas.options import TcpAddress, parse_address

if TYPE_CHECKING:
    from cas.access.access import Access

logger = logging.getLogger(__name__)


def anonymous_role(config: Config, addresses: Sequence[str]) -> Role:
    """What callers without credentials may do at `addresses`.

    ``auto`` is everything where only this machine can call and there is no way to prove who one
    is; with a way to prove it, whoever comes by way of a proxy must not get past it.
    """
    if config.anonymous != "auto":
        return ROLES[config.anonymous]
    local = all(map(is_local, addresses))
    return Role.ADMIN if local and not config.authenticates else Role.NONE


def is_local(address: str) -> bool:
    """Whether only this machine can reach `address`, whose host is numeric."""
    parsed = parse_address(address)
    return not isinstance(parsed, TcpAddress) or ipaddress.ip_address(parsed.host).is_loopback


def open_access(config: Config, addresses: Sequence[str]) -> Access | None:
    """Who may do what at `addresses`; None where everyone may do everything.

    Raises ConfigError for files that cannot be read.
    """
    anonymous = anonymous_role(config, addresses)
    if anonymous is Role.ADMIN and not config.authenticates:
        return None
    # Not for the supervisor, which only warns.
    from cas.access.access import Access
    from cas.access.authenticate import open_authenticator

    settings = AccessSettings(
        htpasswd=config.htpasswd,
        tokens=config.tokens,
        jwt=config.jwt,
        policy=Policy(config.access, anonymous),
    )
    return Access(
        open_authenticator(settings),
        certificates=config.tls_client_ca is not None,
        discard=config.denied_writes == "discard",
    )


def warn(config: Config, addresses: Sequence[str], shown: str) -> None:
    """Logs what an operator may not have meant."""
    if all(map(is_local, addresses)):
        return
    ruled = any(rule.principal == "anonymous" for rule in config.access)
    if not config.authenticates and not ruled and anonymous_role(config, addresses) is Role.NONE:
        logger.warning(
            "every call is refused: other machines can reach this address, and nothing says who "
            "may do what; set htpasswd, tokens, [[jwt]] or tls_client_ca, or say what anonymous "
            "callers may do (--anonymous read, write or admin)",
            extra={"address": shown},
        )
    if (config.htpasswd or config.tokens or config.jwt) and config.tls_cert is None:
        logger.warning(
            "passwords and tokens cross the network unencrypted; set tls_cert and tls_key, or "
            "have a proxy do it",
            extra={"address": shown},
        )
