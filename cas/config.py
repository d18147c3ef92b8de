"""Configuration: every option of `cas serve`, and the four places its value may come from.

Rule: one table, the fields of `Config`.  An option's flag (``--max-blob-size``), TOML key
(``max_blob_size``) and environment variable (``CAS_MAX_BLOB_SIZE``) are made from its
field's name, and all of them are read by its `Kind` (`cas.options`), so that no option can
exist in one place only.  A flag beats the environment, which beats the file, which beats
the default.  Everything wrong is a ConfigError of one line that names the place, the value
and what was expected.

Only `cas.server` and `cas.cli` import this; layers below are handed plain values.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from cas import tables
from cas.access.roles import ANONYMOUS, ROLES, Rule
from cas.access.settings import JwtSettings
from cas.digest import ENABLED, Functions
from cas.errors import ConfigError
from cas.options import (
    ADDRESS,
    CHUNK_SIZE,
    FUNCTIONS,
    HOSTS,
    HTTP_URL,
    INSTANCE,
    OPTIONAL_PATH,
    PATH,
    REDIS_URL,
    SWITCH,
    UPSTREAM,
    WORD,
    Address,
    Kind,
    TcpAddress,
    choice,
    seconds,
    size,
    whole,
)
from cas.reapi.hosts import Host
from cas.store.interface import Compression, Durability

T = TypeVar("T")

TABLES: tuple[tables.Tables[Any], ...] = (tables.ACCESS, tables.JWT)
"""Options of the file alone, by their fields' names."""

KIB, MIB, GIB = 2**10, 2**20, 2**30

Writes = Literal["through", "back", "none"]

MIN_SIZE = 32 * MIB
"""The smallest `max_size`: directories and the index of an empty store take a tenth of it."""


def _option(kind: Kind[T], default: T, help: str) -> T:
    """A field of `Config`: typed as its value, declared with how it is read and explained."""
    declared: T = field(default=default, metadata={"kind": kind, "help": help})
    return declared


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything that `cas serve` can be told.  Sizes are bytes, times are seconds."""

    dir: Path = _option(PATH, Path("~/.cache/cas"), "the store's directory; made if absent")
    grpc: Address = _option(
        ADDRESS, TcpAddress("127.0.0.1", 8980), "where gRPC is served; port 0 picks a free one"
    )
    http: Address = _option(
        ADDRESS, TcpAddress("127.0.0.1", 8080), "where HTTP is served; port 0 picks a free one"
    )
    tls_cert: Path | None = _option(
        OPTIONAL_PATH, None, "certificate chain (PEM) for TLS, read again when it changes"
    )
    tls_key: Path | None = _option(OPTIONAL_PATH, None, "private key (PEM) of tls_cert")
    tls_client_ca: Path | None = _option(
        OPTIONAL_PATH, None, "CAs (PEM) of client certificates, which clients must then have"
    )
    htpasswd: Path | None = _option(
        OPTIONAL_PATH, None, "users and passwords, as htpasswd -B writes them"
    )
    tokens: Path | None = _option(
        OPTIONAL_PATH, None, "bearer tokens, each line a name and a token or its sha256:…"
    )
    anonymous: str = _option(
        choice("auto", *ROLES),
        "auto",
        "role without credentials; auto is admin on this machine, if no authentication is set up, "
        "else none",
    )
    denied_writes: str = _option(
        choice("deny", "discard"),
        "deny",
        "writes of callers who may only read: refused, or answered OK and dropped",
    )
    workers: int = _option(
        whole(0, 1024),
        0,
        "worker processes that share the port; 0 is one per core; a Unix socket has one",
    )
    engine: str = _option(
        choice("cq", "aio"),
        "cq",
        "RPC engine: our own loop on gRPC's core, or grpc.aio, which needs more CPU",
    )
    drain_timeout: float = _option(
        seconds(0, 86_400), 30.0, "seconds that running calls may take to finish on SIGTERM"
    )
    heartbeat_timeout: float = _option(
        seconds(1, 3_600), 15.0, "seconds without an answer until a worker is replaced"
    )
    durability: Durability = _option(
        choice("strict", "batch", "none"),
        "strict",
        "when a write is acknowledged: once synced, synced up to 200 ms later, never synced",
    )
    max_size: int = _option(
        size(0), 0, "bytes that the store may take on disk, index included; 0 is all of the disk"
    )
    disk_reserve: int = _option(
        size(0), 256 * MIB, "bytes of the disk that stay free, whatever max_size says"
    )
    high_watermark: int = _option(
        whole(2, 97), 95, "percent of max_size, or of the disk, above which the oldest is evicted"
    )
    low_watermark: int = _option(whole(1, 96), 90, "percent at which eviction ends")
    min_age: float = _option(
        seconds(0, 31_536_000),
        10_800.0,
        "seconds since its last use for which nothing is evicted, unless writes would be refused",
    )
    upload_expiry: float = _option(
        seconds(60, 31_536_000),
        86_400.0,
        "seconds after which an unfinished upload that nobody goes on with is removed",
    )
    digest_functions: Functions = _option(
        FUNCTIONS,
        ENABLED,
        "digest functions that clients may use: sha256, blake3, sha1, sha384, sha512, md5, "
        "sha256tree",
    )
    max_blob_size: int = _option(size(1), 64 * GIB, "largest blob accepted")
    max_batch_total_size: int = _option(
        size(1, 1 * GIB), 4 * MIB, "blob bytes of one batch request or response, as advertised"
    )
    max_message_size: int = _option(
        size(1, 2 * GIB - 1), 16 * MIB, "largest request message; above max_batch_total_size"
    )
    max_open_uploads: int = _option(
        whole(1), 2_048, "uploads a worker receives at once; further ones get RESOURCE_EXHAUSTED"
    )
    max_uploads_per_client: int = _option(
        whole(0), 1_024, "uploads a worker receives at once from one address; 0 is no limit"
    )
    max_concurrent_calls: int = _option(
        whole(1), 4_096, "calls a worker serves at once; further ones get RESOURCE_EXHAUSTED"
    )
    stall_timeout: float = _option(
        seconds(1, 86_400),
        300.0,
        "seconds for which a client may neither send nor take what its call waits for",
    )
    helper_threads: int = _option(
        whole(1, 256), 4, "threads of a worker for disk reads, big writes and hashing"
    )
    inline_threshold: int = _option(
        size(0, 1 * MIB), 64 * KIB, "largest blob kept in the index instead of its own file"
    )
    direct_threshold: int = _option(
        size(0), 128 * KIB, "blobs from this size on bypass the page cache when written (strict)"
    )
    compression: Compression = _option(
        choice("none", "zstd"), "none", "how blobs are stored that shrink"
    )
    chunk_size: int = _option(
        CHUNK_SIZE, 512 * KIB, "average chunk of blobs that are split for clients, as advertised"
    )
    fetch_hosts: tuple[Host, ...] = _option(
        HOSTS,
        (),
        "hosts from which FetchBlob may fetch over HTTP(S): host, *.host, host:port; none is off",
    )
    fetch_private: bool = _option(
        SWITCH, False, "fetch also from those of them that have no public address"
    )
    fetch_max_size: int = _option(size(1), 1 * GIB, "largest content that is fetched")
    fetch_timeout: float = _option(
        seconds(1, 86_400), 300.0, "seconds that one fetch may take, if its client allows as many"
    )
    upstream: str = _option(
        UPSTREAM,
        "",
        "what lies behind the local store: s3://bucket/prefix, gs://…, az://…, file:///…, or "
        "another server, grpc://host:port, grpcs://…",
    )
    upstream_endpoint: str = _option(
        HTTP_URL, "", "where that is, if not at its provider: http://garage:3900"
    )
    upstream_region: str = _option(WORD, "", "its region, as S3 signs requests for")
    upstream_instance: str = _option(
        INSTANCE, "", "of a server: the one instance for all that is kept there; / has no name"
    )
    upstream_ca: Path | None = _option(
        OPTIONAL_PATH,
        None,
        "of a server: CAs (PEM) to trust for grpcs://, in place of the system's",
    )
    upstream_cert: Path | None = _option(
        OPTIONAL_PATH, None, "of a server: this node's certificate chain (PEM), for mutual TLS"
    )
    upstream_key: Path | None = _option(
        OPTIONAL_PATH, None, "of a server: private key (PEM) of upstream_cert"
    )
    upstream_token: Path | None = _option(
        OPTIONAL_PATH, None, "of a server: file with a bearer token, read again when it changes"
    )
    upstream_login: Path | None = _option(
        OPTIONAL_PATH, None, "of a server: file with user:password, read again when it changes"
    )
    upstream_headers: Path | None = _option(
        OPTIONAL_PATH, None, "of a server: file of more headers, each line Name: value"
    )
    upstream_helper: Path | None = _option(
        OPTIONAL_PATH, None, "of a server: program that knows headers (Bazel's credential helper)"
    )
    upstream_timeout: float = _option(
        seconds(0.1, 3_600),
        10.0,
        "seconds in which it must answer, and in which something must come",
    )
    upstream_concurrency: int = _option(
        whole(1, 4_096), 64, "requests to it at once, of each process"
    )
    upstream_writes: Writes = _option(
        choice("through", "back", "none"),
        "through",
        "when a write is acknowledged: once it is there too, once it is here and queued; or none "
        "is sent",
    )
    upstream_queue: int = _option(
        whole(1, 100_000_000), 100_000, "writes that may wait to be sent there, with back"
    )
    upstream_queue_size: int = _option(
        size(1), 8 * GIB, "bytes of those, which are not evicted meanwhile"
    )
    upstream_remember: float = _option(
        seconds(0, 86_400), 600.0, "seconds for which an object that was there is taken to be there"
    )
    upstream_remember_absent: float = _option(
        seconds(0, 3_600), 5.0, "seconds for which one that was absent is, to FindMissingBlobs"
    )
    upstream_remembered: int = _option(
        whole(0, 100_000_000), 200_000, "objects remembered of each kind; about 200 bytes each"
    )
    upstream_renew: float = _option(
        seconds(0, 31_536_000),
        604_800.0,
        "seconds of age from which an object that is used is renewed there; 0 is never",
    )
    upstream_index: str = _option(
        REDIS_URL, "", "Redis or Valkey in which nodes share what upstream has: redis://host:6379/0"
    )
    upstream_index_age: float = _option(
        seconds(1, 31_536_000), 86_400.0, "seconds for which such an entry is believed"
    )
    require_references: bool = _option(
        SWITCH, False, "refuse an action result that names blobs which are absent"
    )
    verify_reads: bool = _option(
        SWITCH, False, "compare each blob with its digest before it is sent; costs a second read"
    )
    scrub_period: float = _option(
        seconds(0, 31_536_000),
        2_592_000.0,
        "seconds in which everything stored is read and verified once; 0 is never",
    )
    log_format: str = _option(
        choice("auto", "json", "text"), "auto", "auto is text on a terminal, else JSON"
    )
    log_level: str = _option(
        choice("debug", "info", "warning", "error"), "info", "debug has a line per call"
    )

    access: tuple[Rule, ...] = ()
    """``[[access]]``: who may do what."""
    jwt: tuple[JwtSettings, ...] = ()
    """``[[jwt]]``: whose tokens are believed."""

    @property
    def authenticates(self) -> bool:
        """Whether there is any way to prove who one is."""
        return bool(self.htpasswd or self.tokens or self.tls_client_ca or self.jwt)


@dataclass(frozen=True, slots=True)
class Option:
    """One option as every place that reads or prints it sees it."""

    name: str
    """The TOML key."""
    kind: Kind[Any]
    default: Any
    help: str

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return "CAS_" + self.name.upper()

    @property
    def default_text(self) -> str:
        return self.kind.to_text(self.default)


def options() -> tuple[Option, ...]:
    """Every option, in the order in which help, README and default file list them."""
    return tuple(
        Option(f.name, f.metadata["kind"], f.default, f.metadata["help"])
        for f in fields(Config)
        if "kind" in f.metadata
    )


def load(flags: Mapping[str, str], environ: Mapping[str, str]) -> Config:
    """The configuration that flags, environment and file amount to.

    `flags` maps option names (and ``config``, the file's path) to what the command line
    says; `environ` is the process's environment.  The result's `dir` is absolute.
    Raises ConfigError.
    """
    known = {option.name: option for option in options()}
    values: dict[str, Any] = {}

    path = flags.get("config") or environ.get("CAS_CONFIG")
    if path:
        values.update(read_file(Path(path)))

    for option in known.values():
        # An empty variable counts as unset: that is how compose files and CI pass "nothing".
        if text := environ.get(option.variable):
            values[option.name] = _read(option.variable, option.kind, text)
    _refuse_misspelt(environ, known.values())

    for name, text in flags.items():
        if name != "config":
            values[name] = _read(known[name].flag, known[name].kind, text)

    config = Config(**values)
    _check_together(config)
    paths: dict[str, Any] = {
        name: _absolute(name, path)
        for name in (o.name for o in known.values() if o.kind in (PATH, OPTIONAL_PATH))
        if (path := getattr(config, name)) is not None
    }
    return replace(config, **paths)


def read_file(path: Path) -> dict[str, Any]:
    """The values that a TOML file sets, by option name.  Raises ConfigError."""
    try:
        with path.open("rb") as file:
            table = tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"cannot read configuration {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path} is not valid TOML: {reason}") from error

    known = {option.name: option for option in options()}
    structured = {table.name: table for table in TABLES}
    values: dict[str, Any] = {}
    for key, value in _flat(table).items():
        if key in structured:
            values[key] = structured[key].read(str(path), value)
            continue
        if key not in known:
            near = suggestion(key, [*known, *structured])
            raise ConfigError(f"{path}: unknown key {key!r}{near}")
        kind = known[key].kind
        try:
            values[key] = kind.from_toml(value)
        except ValueError as error:
            raise ConfigError(f"{path}: {key}: {value!r} is not {kind.expected}") from error
    return values


def _flat(table: dict[str, Any]) -> dict[str, Any]:
    """``[upstream]`` with ``url``, ``endpoint`` and so on is another way to write ``upstream``,
    ``upstream_endpoint``, …"""
    group = table.get("upstream")
    if not isinstance(group, dict):
        return table
    flat = {key: value for key, value in table.items() if key != "upstream"}
    for key, value in group.items():
        flat["upstream" if key == "url" else f"upstream_{key}"] = value
    return flat


def to_wire(config: Config) -> dict[str, str]:
    """`config` as text values by name, for another process; `from_wire` reads it back."""
    flat = {option.name: option.kind.to_text(getattr(config, option.name)) for option in options()}
    filled = {table.name: value for table in TABLES if (value := getattr(config, table.name))}
    return {**flat, **{t.name: t.to_text(filled[t.name]) for t in TABLES if t.name in filled}}


def from_wire(values: Mapping[str, str]) -> Config:
    """The `Config` that `to_wire` was given."""
    read: dict[str, Any] = {o.name: o.kind.from_text(values[o.name]) for o in options()}
    read |= {t.name: t.from_text(values[t.name]) for t in TABLES if t.name in values}
    return Config(**read)


def suggestion(wrong: str, known: Iterable[str]) -> str:
    """``; did you mean …?`` where a known name is close to `wrong`, else nothing."""
    close = difflib.get_close_matches(wrong, list(known), n=1, cutoff=0.7)
    return f"; did you mean {close[0]}?" if close else ""


def _read(place: str, kind: Kind[Any], text: str) -> Any:
    try:
        return kind.from_text(text)
    except ValueError as error:
        raise ConfigError(f"{place}: {text!r} is not {kind.expected}") from error


def _refuse_misspelt(environ: Mapping[str, str], known: Iterable[Option]) -> None:
    """Refuses a variable that is nearly one of ours.

    Not every unknown ``CAS_…``: Kubernetes sets CAS_SERVICE_HOST and its like in every
    container beside a Service named cas.
    """
    variables = {option.variable for option in known} | {"CAS_CONFIG"}
    for name in sorted(environ):
        if name.startswith("CAS_") and name not in variables:
            close = difflib.get_close_matches(name, variables, n=1, cutoff=0.87)
            if close:
                raise ConfigError(f"unknown environment variable {name}; did you mean {close[0]}?")


def _check_together(config: Config) -> None:
    """What must hold between options."""
    if config.grpc is None and config.http is None:
        raise ConfigError("grpc and http are both none: nothing to serve")
    if 0 < config.max_size < MIN_SIZE:
        raise ConfigError(
            f"max_size {config.max_size} is below {MIN_SIZE}, what an empty store takes and the "
            "least it needs; expected 0 or more than that"
        )
    if config.low_watermark >= config.high_watermark:
        raise ConfigError(
            f"low_watermark {config.low_watermark} is not below "
            f"high_watermark {config.high_watermark}"
        )
    # A batch also carries digests; a message that only holds the blobs would refuse the
    # very batches that capabilities invite.
    if config.max_message_size <= config.max_batch_total_size:
        raise ConfigError(
            f"max_message_size {config.max_message_size} is not above "
            f"max_batch_total_size {config.max_batch_total_size}"
        )
    _check_access(config)


def _check_access(config: Config) -> None:
    """What must hold between those options that say who may do what."""
    if (config.tls_cert is None) != (config.tls_key is None):
        raise ConfigError("tls_cert and tls_key go together: one is set and the other is not")
    if config.tls_client_ca is not None and config.tls_cert is None:
        raise ConfigError("tls_client_ca needs TLS: tls_cert and tls_key are not set")
    taken = {"user", "token", "cert", ANONYMOUS}
    issuers = set()
    for jwt in config.jwt:
        if jwt.name in taken:
            raise ConfigError(f"[[jwt]] name {jwt.name!r} is taken; expected another one for each")
        if jwt.issuer in issuers:
            raise ConfigError(f"[[jwt]] issuer {jwt.issuer!r} is there twice")
        if not jwt.role_claim and not config.access:
            raise ConfigError(
                f"[[jwt]] {jwt.name}: nothing says what its principals may do; expected "
                "role_claim, or rules in [[access]]"
            )
        taken.add(jwt.name)
        issuers.add(jwt.issuer)
    for rule in config.access:
        if not any(_may_fit(rule.principal, name) for name in taken):
            raise ConfigError(
                f"[[access]] principal {rule.principal!r} fits nobody; expected a pattern of "
                f"{', '.join(sorted(f'{name}:…' for name in taken - {ANONYMOUS}))}, "
                f"{ANONYMOUS} or *"
            )


def _may_fit(pattern: str, kind: str) -> bool:
    """Whether a pattern can fit names of this kind of principal: ``ci-*`` alone never does."""
    if kind == ANONYMOUS:
        return pattern == ANONYMOUS
    head, star, _ = pattern.partition("*")
    return head.startswith(f"{kind}:") or (bool(star) and f"{kind}:".startswith(head))


def _absolute(name: str, path: Path) -> Path:
    try:
        return Path(os.path.abspath(path.expanduser()))
    except RuntimeError as error:
        raise ConfigError(f"{name}: {path} names a home directory that is unknown") from error


def is_server(upstream: str) -> bool:
    """Whether it names a server of REAPI, and no object store."""
    return upstream.startswith(("grpc:", "grpcs:", "unix:"))
