"""Remotes' URLs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cas.client.remote import Remote, parse
from cas.errors import CasError, ConfigError


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("grpc://h:1", Remote(False, False, "h", 1)),
        ("grpc://h", Remote(False, False, "h", 8980)),
        ("grpcs://h", Remote(False, True, "h", 443)),
        ("grpcs://h:8/a/b/", Remote(False, True, "h", 8, instance="a/b")),
        ("http://[::1]:80/x", Remote(True, False, "::1", 80, instance="x")),
        (
            "https://me:p%40ss@h",
            Remote(True, True, "h", 443, user="me", password="p@ss"),
        ),
        ("unix:/run/cas.sock", Remote(False, False, "localhost", 0, "/run/cas.sock")),
        ("unix:///run/cas", Remote(False, False, "localhost", 0, "/run/cas")),
        ("http+unix:/s?instance=i", Remote(True, False, "localhost", 0, "/s", "i")),
    ],
)
def test_what_a_url_says(url: str, expected: Remote) -> None:
    assert parse(url) == expected


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:8980",
        "ftp://h",
        "grpc://",
        "grpc://h:x",
        "grpc://h:70000",
        "grpc://h/i?x=1",
        "unix:relative",
        "unix:/s?other=1",
        "http://[::1",
    ],
)
def test_a_wrong_url_is_named_with_the_forms_there_are(url: str) -> None:
    with pytest.raises(ConfigError, match="expected grpc://HOST") as caught:
        parse(url)
    assert repr(url) in str(caught.value)


def test_a_password_is_not_shown() -> None:
    remote = parse("https://me:secret@h/i")
    assert "secret" not in repr(remote)
    assert str(remote) == "https://h:443/i"
    assert parse(str(remote)).base == remote.base == "https://h:443/i"


@given(st.text(max_size=40), st.sampled_from(["grpc://", "http://", "unix:/", ""]))
def test_any_text_is_a_remote_or_a_config_error(text: str, scheme: str) -> None:
    try:
        remote = parse(scheme + text)
    except CasError:
        return
    assert parse(str(remote)).target == remote.target


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("grpc://localhost", True),
        ("grpcs://127.0.0.53:1/a", True),
        ("http://[::1]:80", True),
        ("unix:/run/cas.sock", True),
        ("grpc://10.0.0.1", False),
        ("https://localhost.example", False),
        ("grpc://127.example", False),
    ],
)
def test_whether_it_is_on_this_machine(url: str, local: bool) -> None:
    assert parse(url).local == local
