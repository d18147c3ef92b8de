"""Who a node is to the server upstream, by files."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from cas.client.remote import parse
from cas.errors import ConfigError
from cas.upstream.identity import READ_SECONDS, FileIdentity, Files, read

REMOTE = parse("grpcs://cache.example.com")


def file(place: Path, text: str) -> Path:
    path = place / "file"
    path.write_text(text)
    return path


def test_what_files_tell(tmp_path: Path) -> None:
    assert read(Files()) == ()
    assert read(Files(token=file(tmp_path, "abc\n"))) == (("authorization", "Bearer abc"),)
    assert read(Files(login=file(tmp_path, "me:pass:word\n"))) == (
        ("authorization", "Basic bWU6cGFzczp3b3Jk"),
    )
    lines = "# a comment\n\nX-Api-Key: k:1\nx-team:  build \n"
    assert read(Files(headers=file(tmp_path, lines))) == (("x-api-key", "k:1"), ("x-team", "build"))


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("token", ""),
        ("token", "secret\nsecret"),
        ("token", "sécret"),
        ("login", "secret"),
        ("headers", "secret"),
        ("headers", "name: sécret"),
        ("headers", "na me: secret"),
        ("headers", "name-bin: secret"),
    ],
)
def test_what_is_wrong_is_told_without_what_is_in_it(tmp_path: Path, kind: str, text: str) -> None:
    path = file(tmp_path, text)
    with pytest.raises(ConfigError, match="file") as raised:
        read(Files(**{kind: path}))
    assert "cret" not in str(raised.value)


def test_what_is_not_there_or_too_much_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*absent"):
        read(Files(token=tmp_path / "absent"))
    with pytest.raises(ConfigError, match="expected one"):
        read(Files(token=tmp_path / "a", login=tmp_path / "b"))


def test_files_are_read_again_when_old_or_refused(tmp_path: Path) -> None:
    now = [0.0]
    path = file(tmp_path, "one")
    identity = FileIdentity(Files(token=path), REMOTE, clock=lambda: now[0])

    def token() -> str:
        [(_, value)] = asyncio.run(identity.headers())
        return value

    assert token() == "Bearer one"
    assert not identity.refused()
    path.write_text("two")
    assert token() == "Bearer one"
    assert identity.refused()
    assert token() == "Bearer two"
    path.write_text("three")
    now[0] += READ_SECONDS
    assert token() == "Bearer three"
    path.unlink()
    now[0] += READ_SECONDS
    assert token() == "Bearer three", "one that is being replaced"


def test_a_helper_is_asked_beside_other_headers(tmp_path: Path) -> None:
    helper = tmp_path / "helper"
    helper.write_text(
        "#!/bin/sh\ncat >/dev/null\n"
        """echo '{"headers": {"Authorization": ["Bearer helped"]}}'\n"""
    )
    helper.chmod(0o755)
    identity = FileIdentity(Files(helper=helper, headers=file(tmp_path, "x-team: build")), REMOTE)
    assert asyncio.run(identity.headers()) == (
        ("x-team", "build"),
        ("authorization", "Bearer helped"),
    )
    assert identity.refused(), "it may know others"
