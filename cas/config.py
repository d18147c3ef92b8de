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

from cas.errors import ConfigError
from cas.options import (
    ADDRESS,
    PATH,
    SWITCH,
    Address,
    Kind,
    TcpAddress,
    choice,
    seconds,
    size,
    whole,
)

T = TypeVar("T")

Durability = Literal["strict", "batch", "none"]

KIB, MIB, GIB = 2**10, 2**20, 2**30

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
        size(0, 1 * MIB), 16 * KIB, "largest blob kept in the index instead of its own file"
    )
    direct_threshold: int = _option(
        size(0), 128 * KIB, "blobs from this size on bypass the page cache when written (strict)"
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
        Option(f.name, f.metadata["kind"], f.default, f.metadata["help"]) for f in fields(Config)
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
    return replace(config, dir=_absolute(config.dir))


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
    values = {}
    for key, value in table.items():
        if key not in known:
            raise ConfigError(f"{path}: unknown key {key!r}{suggestion(key, known)}")
        kind = known[key].kind
        try:
            values[key] = kind.from_toml(value)
        except ValueError as error:
            raise ConfigError(f"{path}: {key}: {value!r} is not {kind.expected}") from error
    return values


def to_wire(config: Config) -> dict[str, str]:
    """`config` as text values by name, for another process; `from_wire` reads it back."""
    return {option.name: option.kind.to_text(getattr(config, option.name)) for option in options()}


def from_wire(values: Mapping[str, str]) -> Config:
    """The `Config` that `to_wire` was given."""
    return Config(**{o.name: o.kind.from_text(values[o.name]) for o in options()})


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


def _absolute(path: Path) -> Path:
    try:
        return Path(os.path.abspath(path.expanduser()))
    except RuntimeError as error:
        raise ConfigError(f"dir: {path} names a home directory that is unknown") from error
