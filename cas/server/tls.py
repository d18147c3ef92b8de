"""TLS: certificate, key and client CAs from files, read again when they change.

Rule: the same files for gRPC and HTTP.  New connections get what the files hold now; where that
makes no sense (a certificate without its key, because one of the two is not there yet) they get
what made sense last, and the log says so once.  Unix sockets are never wrapped: the file system
says who may open them.
"""

from __future__ import annotations

import logging
import ssl
import threading
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cas.access.files import Stamp, reason, stamp
from cas.config import Config
from cas.errors import ConfigError
from cas.options import UnixAddress, parse_address

if TYPE_CHECKING:
    import grpc

logger = logging.getLogger(__name__)


class Material(NamedTuple):
    """What the files held at one time, found to fit together."""

    certificate: bytes
    key: bytes
    client_ca: bytes | None
    context: ssl.SSLContext
    number: int
    """Differs for each."""


class TlsFiles:
    """The files.  Any thread may ask."""

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None) -> None:
        """Raises ConfigError."""
        self._certificate = certificate
        self._key = key
        self._client_ca = client_ca
        self._lock = threading.Lock()
        try:
            self._stamps = self._look()
            self._material = self._read(0)
        except (OSError, ValueError) as error:
            raise ConfigError(f"{certificate} with {key}: {_why(error)}") from None

    def material(self) -> Material:
        """What new connections are to use."""
        with self._lock:
            try:
                stamps = self._look()
            except OSError:
                stamps = ()
            if stamps != self._stamps:
                self._stamps = stamps
                self._renew()
            return self._material

    def _renew(self) -> None:
        facts = {"certificate": str(self._certificate), "key": str(self._key)}
        try:
            self._material = self._read(self._material.number + 1)
        except (OSError, ValueError) as error:
            logger.error(
                "the TLS certificate cannot be renewed; the one before stays in use",
                extra={**facts, "reason": _why(error)},
            )
        else:
            logger.info("the TLS certificate was renewed", extra=facts)

    def _look(self) -> tuple[Stamp, ...]:
        paths = (self._certificate, self._key, self._client_ca)
        return tuple(stamp(path) for path in paths if path is not None)

    def _read(self, number: int) -> Material:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # A key with a passphrase would have OpenSSL ask for it on the terminal.
        context.load_cert_chain(self._certificate, self._key, password=_no_passphrase)
        if self._client_ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self._client_ca)
        return Material(
            self._certificate.read_bytes(),
            self._key.read_bytes(),
            self._client_ca.read_bytes() if self._client_ca is not None else None,
            context,
            number,
        )


def open_files(config: Config) -> TlsFiles | None:
    """The files of `config`, None without TLS.  Raises ConfigError."""
    if config.tls_cert is None or config.tls_key is None:
        return None
    return TlsFiles(config.tls_cert, config.tls_key, config.tls_client_ca)


def is_plain(address: str) -> bool:
    """Whether `address` is served without TLS in any case."""
    return isinstance(parse_address(address), UnixAddress)


def ssl_context(files: TlsFiles) -> ssl.SSLContext:
    """A context for servers of Python's `ssl`, whose connections use what the files hold."""
    first = files.material()

    def renew(connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        # Called for every handshake, also for those that name no server.
        connection.context = files.material().context

    first.context.sni_callback = renew
    return first.context


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Credentials for gRPC servers, whose connections use what the files hold."""
    import grpc

    def configuration(material: Material) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration(
            [(material.key, material.certificate)], material.client_ca
        )

    used = files.material()

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        nonlocal used
        material = files.material()
        if material.number == used.number:
            return None
        used = material
        return configuration(material)

    return grpc.dynamic_ssl_server_credentials(
        configuration(used),
        fetch,  # type: ignore[arg-type]  # None is no change, as its documentation has it
        require_client_authentication=used.client_ca is not None,
    )


def _no_passphrase() -> str:
    raise ValueError("the key has a passphrase; expected one without")


def _why(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        # Its text names places in OpenSSL's sources; the reason is what helps.
        words = (error.reason or "not a certificate and its key in PEM").replace("_", " ")
        return words.lower()
    return reason(error)
