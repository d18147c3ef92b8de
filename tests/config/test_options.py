"""Values as text and as TOML: sizes, addresses, numbers, switches."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cas import config, options
from cas.digest import BLAKE3, FUNCTIONS, SHA256, functions
from cas.options import TcpAddress, UnixAddress
from cas.reapi import hosts

exactly = settings(derandomize=True, max_examples=200, deadline=None)

SIZES = st.integers(0, options.MAX_SIZE)


@exactly
@given(SIZES)
def test_a_formatted_size_reads_back(number: int) -> None:
    assert options.parse_size(options.format_size(number)) == number


@exactly
@given(st.integers(0, 10**6), st.sampled_from(sorted(options.UNITS)), st.booleans())
def test_a_size_is_its_number_times_its_unit(number: int, unit: str, space: bool) -> None:
    text = f"{number}{' ' if space else ''}{unit}"
    assert options.parse_size(text) == number * options.UNITS[unit]


@pytest.mark.parametrize(
    ("text", "number"),
    [("0", 0), ("4194304", 4_194_304), ("4MiB", 4_194_304), ("1 TiB", 2**40)],
)
def test_sizes(text: str, number: int) -> None:
    assert options.parse_size(text) == number


@pytest.mark.parametrize(
    "text",
    ["", "4 M", "4MB", "4mib", "-1", "+1", "1.5GiB", "1_000", " 4", "4 ", "٤", "4  KiB", "KiB",
     "9" * 20, "4\n"],
)  # fmt: skip
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (its message is not used)
        options.parse_size(text)


@exactly
@given(st.text(alphabet=string.printable, max_size=12))
def test_size_parsing_ends_in_a_size_or_a_value_error(text: str) -> None:
    try:
        number = options.parse_size(text)
    except ValueError:
        return
    assert number >= 0
    assert options.parse_size(options.format_size(number)) == number


HOSTS = st.one_of(
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(str),
    st.from_regex(r"[a-z][a-z0-9.-]{0,30}", fullmatch=True),
)
TCP = st.builds(TcpAddress, HOSTS, st.integers(0, 65_535))
UNIX = st.builds(UnixAddress, st.from_regex(r"/[A-Za-z0-9_./-]{1,90}", fullmatch=True))


@exactly
@given(st.one_of(TCP, UNIX, st.none()))
def test_a_formatted_address_reads_back(address: options.Address) -> None:
    assert options.parse_address(options.format_address(address)) == address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("none", None),
        ("127.0.0.1:8980", TcpAddress("127.0.0.1", 8980)),
        ("localhost:0", TcpAddress("localhost", 0)),
        ("[::1]:80", TcpAddress("::1", 80)),
        ("[0:0:0:0:0:0:0:1]:80", TcpAddress("::1", 80)),
        ("unix:/run/cas.sock", UnixAddress("/run/cas.sock")),
    ],
)
def test_addresses(text: str, address: options.Address) -> None:
    assert options.parse_address(text) == address


@pytest.mark.parametrize(
    "text",
    ["", "8980", ":8980", "localhost", "localhost:", "localhost:65536", "localhost:-1",
     "::1:80", "[::1]", "[nope]:80", "[::1%eth0]:80", "unix:", "unix:relative", "unix:/",
     "unix:/a b", "unix:/a%20b", "unix:/" + "x" * 107, "None", "http://localhost:80",
     "localhost:80 ", "localhost:\uff18\uff10"],
)  # fmt: skip
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (its message is not used)
        options.parse_address(text)


@exactly
@given(st.text(max_size=40))
def test_address_parsing_ends_in_an_address_or_a_value_error(text: str) -> None:
    try:
        address = options.parse_address(text)
    except ValueError:
        return
    assert options.parse_address(options.format_address(address)) == address


@exactly
@given(st.floats(0, 86_400))
def test_written_seconds_read_back(number: float) -> None:
    kind = options.seconds(0, 86_400)
    assert kind.from_text(kind.to_text(number)) == number


OPTIONAL_PATHS = st.one_of(st.none(), st.from_regex(r"/[a-z/. ]{1,20}", fullmatch=True).map(Path))

HOST_PATTERNS = st.builds(
    hosts.Host,
    st.from_regex(r"[a-z][a-z0-9.-]{4,30}", fullmatch=True) | st.just("::1"),
    st.just(False),
    st.none() | st.integers(1, 65_535),
)

VALUES: dict[str, st.SearchStrategy[Any]] = {
    "dir": st.from_regex(r"[a-z~/. ]{1,20}", fullmatch=True).map(Path),
    "grpc": st.one_of(TCP, UNIX, st.none()),
    "http": st.one_of(TCP, UNIX, st.none()),
    "tls_cert": OPTIONAL_PATHS,
    "tls_key": OPTIONAL_PATHS,
    "tls_client_ca": OPTIONAL_PATHS,
    "htpasswd": OPTIONAL_PATHS,
    "tokens": OPTIONAL_PATHS,
    "anonymous": st.sampled_from(["auto", "none", "read", "write", "admin"]),
    "denied_writes": st.sampled_from(["deny", "discard"]),
    "workers": st.integers(0, 1024),
    "engine": st.sampled_from(["aio", "cq"]),
    "drain_timeout": st.floats(0, 86_400),
    "heartbeat_timeout": st.floats(1, 3_600),
    "durability": st.sampled_from(["strict", "batch", "none"]),
    "max_size": st.integers(0, options.MAX_SIZE),
    "disk_reserve": st.integers(0, options.MAX_SIZE),
    "high_watermark": st.integers(2, 97),
    "low_watermark": st.integers(1, 96),
    "min_age": st.floats(0, 31_536_000),
    "upload_expiry": st.floats(60, 31_536_000),
    "digest_functions": st.lists(st.sampled_from(FUNCTIONS), min_size=1, unique=True).map(
        functions
    ),
    "max_blob_size": st.integers(1, options.MAX_SIZE),
    "max_batch_total_size": st.integers(1, 2**30),
    "max_message_size": st.integers(1, 2**31 - 1),
    "max_open_uploads": st.integers(1, 10**9),
    "max_uploads_per_client": st.integers(0, 10**9),
    "max_concurrent_calls": st.integers(1, 10**9),
    "stall_timeout": st.floats(1, 86_400),
    "helper_threads": st.integers(1, 256),
    "inline_threshold": st.integers(0, 2**20),
    "direct_threshold": st.integers(0, options.MAX_SIZE),
    "compression": st.sampled_from(["none", "zstd"]),
    "chunk_size": st.just(0) | st.integers(10, 20).map(lambda bits: 1 << bits),
    "fetch_hosts": st.lists(HOST_PATTERNS, unique=True).map(tuple),
    "fetch_private": st.booleans(),
    "fetch_max_size": st.integers(1, options.MAX_SIZE),
    "fetch_timeout": st.floats(1, 86_400),
    "upstream": st.sampled_from(["", "s3://bucket/a/b", "gs://b.c-d", "az://box", "file:///tmp/x"])
    | st.sampled_from(
        ["grpc://ci:8980", "grpcs://[::1]:1/team/linux", "unix:/run/cas.sock?instance=team"]
    ),
    "upstream_endpoint": st.sampled_from(["", "http://127.0.0.1:9000", "https://[::1]:1/x"]),
    "upstream_region": st.sampled_from(["", "eu-west-1", "garage"]),
    "upstream_instance": st.sampled_from(["", "/", "main", "team/linux"]),
    "upstream_ca": OPTIONAL_PATHS,
    "upstream_cert": OPTIONAL_PATHS,
    "upstream_key": OPTIONAL_PATHS,
    "upstream_token": OPTIONAL_PATHS,
    "upstream_login": OPTIONAL_PATHS,
    "upstream_headers": OPTIONAL_PATHS,
    "upstream_helper": OPTIONAL_PATHS,
    "upstream_timeout": st.floats(0.1, 3_600),
    "upstream_concurrency": st.integers(1, 4_096),
    "upstream_writes": st.sampled_from(["through", "back", "none"]),
    "upstream_queue": st.integers(1, 100_000_000),
    "upstream_queue_size": st.integers(1, options.MAX_SIZE),
    "upstream_remember": st.floats(0, 86_400),
    "upstream_remember_absent": st.floats(0, 3_600),
    "upstream_remembered": st.integers(0, 100_000_000),
    "upstream_renew": st.one_of(st.just(0.0), st.floats(0, 31_536_000)),
    "upstream_index": st.sampled_from(["", "redis://h:1/2", "rediss://u:p@h", "unix:///run/r"]),
    "upstream_index_age": st.floats(1, 31_536_000),
    "require_references": st.booleans(),
    "verify_reads": st.booleans(),
    "scrub_period": st.floats(0, 31_536_000),
    "log_format": st.sampled_from(["auto", "json", "text"]),
    "log_level": st.sampled_from(["debug", "info", "warning", "error"]),
}


@pytest.mark.parametrize("written", ["blake3, sha256", ["blake3", "sha256"]], ids=["text", "list"])
def test_digest_functions_may_be_a_list(written: object) -> None:
    assert options.FUNCTIONS.from_toml(written) == functions((BLAKE3, SHA256))


@pytest.mark.parametrize(
    "wrong",
    ["", ",", "sha256,", "SHA256", "sha256,sha256", "vso", 1, [], ["sha256", 1], [["sha256"]]],
    ids=repr,
)
def test_what_is_no_list_of_digest_functions(wrong: object) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (its message is not used)
        options.FUNCTIONS.from_toml(wrong)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (options.UPSTREAM, "s3:/bucket"),
        (options.UPSTREAM, "s3://"),
        (options.UPSTREAM, "s3://user:secret@bucket"),
        (options.UPSTREAM, "ftp://bucket"),
        (options.UPSTREAM, "grpc://user:secret@host"),
        (options.UPSTREAM, "grpcs://"),
        (options.UPSTREAM, "unix:relative"),
        (options.INSTANCE, "/leading"),
        (options.UPSTREAM, "file://here"),
        (options.UPSTREAM, "s3://bucket/a b"),
        (options.UPSTREAM, ""),
        (options.HTTP_URL, "garage:3900"),
        (options.HTTP_URL, "http://user:secret@garage:3900"),
        (options.WORD, "eu west"),
        (options.WORD, ""),
        (options.REDIS_URL, "redis:6379"),
        (options.REDIS_URL, "redis://h/x"),
    ],
)
def test_what_names_no_upstream(kind: options.Kind[str], text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (its message is not used)
        kind.from_text(text)


@exactly
@given(st.fixed_dictionaries(VALUES).map(lambda values: config.Config(**values)))
def test_a_configuration_survives_the_way_to_another_process(given_: config.Config) -> None:
    assert config.from_wire(config.to_wire(given_)) == given_


def test_the_strategies_above_cover_every_option() -> None:
    assert list(VALUES) == [option.name for option in config.options()]
