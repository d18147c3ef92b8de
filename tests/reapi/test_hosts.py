"""Which origins may be asked."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cas.reapi import hosts
from cas.reapi.hosts import Host, Location

ALLOWED = tuple(map(hosts.parse, ("example.org", "*.example.com", "example.net:8080", "[::1]:80")))
exactly = settings(derandomize=True, max_examples=200, deadline=None)


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/a",
        "https://example.org",
        "HTTPS://EXAMPLE.ORG:443/a?b=c#d",
        "https://example.org./a",
        "https://a.example.com/",
        "https://a.b.example.com/",
        "http://example.net:8080/a",
        "http://[::1]/a",
    ],
)
def test_what_is_allowed(url: str) -> None:
    location = hosts.locate(url)
    assert location is not None
    assert hosts.is_allowed(location, ALLOWED)


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org:8080/a",
        "https://example.org:80/a",
        "http://xexample.org/",
        "http://example.org.evil/",
        "http://a.example.org/",
        "http://example.com/",
        "http://xexample.com/",
        "http://example.net/",
        "http://evil/example.org",
        "http://evil/?@example.org",
        "http://evil#@example.org",
        "http://127.0.0.1/",
        "http://[::2]/",
    ],
)
def test_what_is_not(url: str) -> None:
    location = hosts.locate(url)
    assert location is not None
    assert not hosts.is_allowed(location, ALLOWED)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "example.org",
        "//example.org/",
        "ftp://example.org/",
        "file:///etc/passwd",
        "http:///a",
        "http://user@example.org/",
        "http://example.org:x@evil/",
        "http://example.org\\@evil/",
        "http://example.org:99999/",
        "http://[::1/",
        "http://example.org/a b",
        "http://example.org/a\r\nHost: evil",
        "http://example.org/ä",
        "http://example.org/\0",
    ],
)
def test_what_is_no_location(url: str) -> None:
    assert hosts.locate(url) is None


def test_what_is_asked_for() -> None:
    expected = Location("http", "example.org", 8080, "/a/b?c=d&e")
    assert hosts.locate("http://example.org:8080/a/b?c=d&e#f") == expected
    assert hosts.locate("https://example.org") == Location("https", "example.org", 443, "/")


@exactly
@given(st.text(max_size=60) | st.text("htps:/@.#?[]\\exampl 01", max_size=60))
def test_any_url_leads_somewhere_or_nowhere(url: str) -> None:
    location = hosts.locate(url)
    assert location is None or location.scheme in hosts.PORTS


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("example.org", Host("example.org", False, None)),
        (" Example.ORG ", Host("example.org", False, None)),
        ("*.example.org:8443", Host("example.org", True, 8443)),
        ("[::1]", Host("::1", False, None)),
        ("[0:0::1]:80", Host("::1", False, 80)),
        ("127.0.0.1:80", Host("127.0.0.1", False, 80)),
    ],
)
def test_hosts_are_read_and_written(text: str, host: Host) -> None:
    assert hosts.parse(text) == host
    assert hosts.parse(str(host)) == host


@pytest.mark.parametrize(
    "text",
    ["", "*", "*.", "a b", "http://a", "a/b", "a:0", "a:70000", "a:x", "[zz]", "[:::]", "::1"],
)
def test_what_is_no_host(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (its message is not used)
        hosts.parse(text)


@exactly
@given(st.text(max_size=30))
def test_reading_a_host_ends_in_one_or_a_value_error(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert hosts.parse(str(hosts.parse(text))) == hosts.parse(text)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1:248:1893:25c8:1946", True),
        ("127.0.0.1", False),
        ("0.0.0.0", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("ff02::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:93.184.216.34", True),
        ("2002:7f00:1::", False),
        ("64:ff9b::10.0.0.1", False),
        ("64:ff9b::5db8:d822", True),
    ],
)
def test_public_addresses(address: str, public: bool) -> None:
    assert hosts.is_public(address) is public
