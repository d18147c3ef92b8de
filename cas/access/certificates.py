"""Client certificates: the names that one proves.

Rule: pure; the transport has verified the certificate by then.  Every subject alternative
name counts, and the subject's common name: whoever signed it vouches for all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_KINDS = ("URI", "DNS", "email", "IP Address")
"""Of subject alternative names, in the order in which they name the principal."""

_GRPC_KINDS = ("peer_uri", "peer_dns", "peer_email", "peer_ip", "x509_subject_alternative_name")
"""In the same order; the last holds all of them."""


def of_grpc(auth: Mapping[str, Sequence[bytes]]) -> tuple[str, ...]:
    """Of what gRPC's core calls the auth context; empty without a certificate."""
    if "x509_pem_cert" not in auth:
        return ()
    found = [value for kind in _GRPC_KINDS for value in auth.get(kind, ())]
    found += auth.get("x509_common_name", ())
    return _unique(value.decode("utf-8", "replace") for value in found)


def of_ssl(certificate: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Of `ssl.SSLSocket.getpeercert`'s; empty without a certificate."""
    if not certificate:
        return ()
    named: Sequence[tuple[str, str]] = certificate.get("subjectAltName", ())
    found = [value for wanted in _KINDS for kind, value in named if kind == wanted]
    subject: Iterable[Iterable[tuple[str, str]]] = certificate.get("subject", ())
    found += [value for part in subject for key, value in part if key == "commonName"]
    return _unique(found)


def _unique(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for name in names if name and name.isprintable()))
