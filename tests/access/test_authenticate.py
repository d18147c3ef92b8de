"""From headers to callers: what is remembered, for how long, and what changes with the files."""

from __future__ import annotations

import base64
import gc
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bcrypt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cas.access import authenticate, files
from cas.access.authenticate import Authenticator, Caller, Check, open_authenticator
from cas.access.files import WatchedFile, Watcher
from cas.access.roles import Policy, Role, Rule
from cas.access.settings import AccessSettings, JwtSettings
from cas.errors import ConfigError, LimitExceeded, Unauthenticated
from tests.access import issuing

PATIENCE = 40.0
PASSWORD = "open-sesame"
TOKEN = "mF_9.B5f-4.1JqM6aYhB"


def hashed(password: str) -> str:
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def resolved(found: Caller | Check) -> Caller:
    return found.future.result(PATIENCE) if isinstance(found, Check) else found


@pytest.fixture
def places(tmp_path: Path) -> AccessSettings:
    (tmp_path / "htpasswd").write_text(f"alice:{hashed(PASSWORD)}\n")
    (tmp_path / "tokens").write_text(f"ci {TOKEN}\n")
    (tmp_path / "jwks").write_text(issuing.jwks(issuing.jwk("EdDSA", "one")))
    return AccessSettings(
        htpasswd=tmp_path / "htpasswd",
        tokens=tmp_path / "tokens",
        jwt=(
            JwtSettings(
                issuer=issuing.ISSUER, audience=(issuing.AUDIENCE,), jwks=str(tmp_path / "jwks")
            ),
        ),
        policy=Policy((Rule(Role.READ, principal="jwt:*"), Rule(Role.WRITE, principal="token:ci"))),
    )


@pytest.fixture
def opened(places: AccessSettings) -> Iterator[Authenticator]:
    authenticator = open_authenticator(places)
    yield authenticator
    authenticator.close()


def test_every_kind_of_credentials(opened: Authenticator) -> None:
    assert resolved(opened.caller(basic("alice", PASSWORD))).name == "user:alice"
    assert resolved(opened.caller(f"Bearer {TOKEN}")).name == "token:ci"
    assert resolved(opened.caller(f"bearer  {TOKEN}")).name == "token:ci"
    assert resolved(opened.caller(f"Bearer {issuing.token(sub='dev')}")).name == "jwt:dev"
    assert opened.caller(None) is opened.anonymous
    certified = opened.caller(None, ("spiffe://x", "cn"))
    assert isinstance(certified, Caller)
    assert certified.name == "cert:spiffe://x"
    assert certified.principal.others == ("cert:cn",)
    both = resolved(opened.caller(f"Bearer {TOKEN}", ("spiffe://x",)))
    assert both.name == "token:ci", "the header counts before the certificate"
    assert both.rights.role("main") is Role.WRITE


def test_where_no_header_is_served_none_counts() -> None:
    authenticator = Authenticator(Policy())
    assert authenticator.caller("Bearer whatever") is authenticator.anonymous
    found = authenticator.caller("Basic whatever", ("build",))
    assert isinstance(found, Caller)
    assert found.name == "cert:build"
    authenticator.close()


def test_what_was_right_is_not_checked_again(opened: Authenticator) -> None:
    header = basic("alice", PASSWORD)
    first = opened.caller(header)
    assert isinstance(first, Check)
    found = resolved(first)
    assert opened.caller(header) is found


@pytest.mark.parametrize(
    "header",
    [
        basic("alice", "wrong"),
        basic("mallory", PASSWORD),
        basic("", ""),
        "Basic !!!",
        "Basic " + base64.b64encode(b"alice").decode(),
        "Basic " + base64.b64encode(b"\xff\xfe:x").decode(),
        "Bearer wrong-wrong-wrong-wrong",
        "Bearer",
        "Bearer " + issuing.token(number=1),
        "Digest username=alice",
        "",
        " ",
        "\x00",
        "Bearer \udcff\ud800",
        TOKEN,
        "x" * (authenticate.MAX_HEADER + 1),
    ],
)
def test_what_is_wrong_is_refused_without_being_repeated(
    opened: Authenticator, header: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for _ in range(2):
        with pytest.raises(Unauthenticated) as caught:
            resolved(opened.caller(header))
        said = str(caught.value) + caplog.text
        for word in header.split():
            assert len(word) < 8 or word not in said


NAMED = st.sampled_from(["Basic", "Bearer", "basic", "BEARER", "Digest", ""])


@settings(derandomize=True, max_examples=150, deadline=None)
@given(NAMED, st.text(max_size=40))
def test_no_header_is_more_than_refused(scheme: str, rest: str) -> None:
    users = htpasswd_of(f"alice:{hashed(PASSWORD)}")
    authenticator = Authenticator(Policy(), users=users)
    try:
        resolved(authenticator.caller(f"{scheme} {rest}"))
        raise AssertionError("nobody is called so")
    except Unauthenticated:
        pass
    finally:
        authenticator.close()


def htpasswd_of(text: str) -> Any:
    from cas.access import htpasswd

    class File:
        value = htpasswd.parse(text)

    return File()


def test_credentials_are_not_kept_in_memory_as_they_came(opened: Authenticator) -> None:
    header = f"Bearer {TOKEN}"
    resolved(opened.caller(header))
    known = vars(opened)["_known"]
    assert len(known) == 1
    assert not any(TOKEN.encode() in key for key in known)
    gc.collect()
    assert TOKEN not in repr(vars(opened))


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


class SlowUsers:
    """As many checks as come are counted; none ends before `gate` opens."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.asked: list[str] = []

    @property
    def value(self) -> SlowUsers:
        return self

    def verify(self, name: str, password: bytes) -> bool:
        self.asked.append(name)
        assert self.gate.wait(PATIENCE)
        return password == PASSWORD.encode()


def slow(clock: Callable[[], float] = time.monotonic) -> tuple[SlowUsers, Authenticator]:
    users = SlowUsers()
    return users, Authenticator(Policy(), users=users, clock=clock)  # type: ignore[arg-type]


def test_many_with_the_same_credentials_wait_for_one_check() -> None:
    users, authenticator = slow()
    checks = [authenticator.caller(basic("a", PASSWORD)) for _ in range(100)]
    users.gate.set()
    assert {resolved(check).name for check in checks} == {"user:a"}
    assert users.asked == ["a"]
    authenticator.close()


def test_checks_under_way_are_bounded_and_who_is_known_is_not_held_up() -> None:
    users, authenticator = slow()
    users.gate.set()
    known = resolved(authenticator.caller(basic("known", PASSWORD)))
    users.gate.clear()
    checks = [authenticator.caller(basic(f"u{n}", "x")) for n in range(authenticate.MAX_WAITING)]
    with pytest.raises(LimitExceeded, match="credentials are being checked"):
        authenticator.caller(basic("one-more", "x"))
    assert authenticator.caller(basic("known", PASSWORD)) is known
    with pytest.raises(Unauthenticated, match="scheme"):
        resolved(authenticator.caller("Bearer some-other-kind-of-credentials"))
    users.gate.set()
    for check in checks:
        with pytest.raises(Unauthenticated):
            resolved(check)
    authenticator.close()


def test_credentials_are_checked_again_when_their_time_is_over() -> None:
    clock = Clock()
    users, authenticator = slow(clock)
    users.gate.set()
    right, wrong = basic("a", PASSWORD), basic("b", "wrong")
    resolved(authenticator.caller(right))
    clock.now += authenticate.KEPT - 1
    assert isinstance(authenticator.caller(right), Caller)
    clock.now += 2
    assert resolved(authenticator.caller(right)).name == "user:a"
    assert users.asked == ["a", "a"]

    for _ in range(3):
        with pytest.raises(Unauthenticated):
            resolved(authenticator.caller(wrong))
    assert users.asked == ["a", "a", "b"]
    clock.now += authenticate.KEPT_REFUSED + 1
    with pytest.raises(Unauthenticated):
        resolved(authenticator.caller(wrong))
    assert users.asked == ["a", "a", "b", "b"]
    authenticator.close()


def test_a_token_is_not_remembered_for_longer_than_it_is_good(
    places: AccessSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    authenticator = open_authenticator(places)
    soon = f"Bearer {issuing.token(exp=int(time.time()) + 30)}"
    caller = resolved(authenticator.caller(soon))
    assert caller.until <= time.monotonic() + 30 + places.jwt[0].leeway
    authenticator.close()


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authenticate, "REMEMBERED", 10)
    users, authenticator = slow()
    users.gate.set()
    for number in range(30):
        resolved(authenticator.caller(basic(f"u{number}", PASSWORD)))
        with pytest.raises(Unauthenticated):
            resolved(authenticator.caller(basic(f"u{number}", "wrong")))
        authenticator.caller(None, (f"cert-{number}",))
    for kept in ("_known", "_refused", "_certificates"):
        assert len(vars(authenticator)[kept]) == 10
    assert not vars(authenticator)["_passwords"].running
    authenticator.close()


def test_a_check_that_began_before_a_change_is_not_remembered_after_it() -> None:
    users, authenticator = slow()
    check = authenticator.caller(basic("a", PASSWORD))
    until(lambda: users.asked == ["a"])
    authenticator.forget()
    users.gate.set()
    assert resolved(check).name == "user:a"
    assert isinstance(authenticator.caller(basic("a", PASSWORD)), Check)
    authenticator.close()


# --- files


def replace(path: Path, text: str) -> None:
    """As editors do, and Kubernetes: another file in its place."""
    new = path.with_suffix(".new")
    new.write_text(text)
    os.replace(new, path)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_who_was_taken_off_a_file_is_refused_soon(
    places: AccessSettings, opened: Authenticator
) -> None:
    assert places.tokens is not None
    header, other = f"Bearer {TOKEN}", "Bearer another-long-token"
    resolved(opened.caller(header))
    replace(places.tokens, "laptop another-long-token\n")

    def refused() -> bool:
        try:
            resolved(opened.caller(header))
        except Unauthenticated:
            return True
        return False

    until(refused)
    assert resolved(opened.caller(other)).name == "token:laptop"


def test_a_file_that_became_wrong_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "file"
    path.write_text("1")
    watched = WatchedFile(path, int)
    assert not watched.refresh()
    for wrong in (b"secret-word", b"\xff", b"x" * (files.MAX_BYTES + 1)):
        path.write_bytes(wrong)
        assert not watched.refresh()
        assert not watched.refresh()
    path.unlink()
    assert not watched.refresh()
    assert not watched.refresh()
    assert watched.value == 1
    assert len(caplog.records) == 4, "each is said once"
    path.write_text("2")
    assert watched.refresh()
    assert watched.value == 2


def test_a_file_that_is_not_there_at_the_start(tmp_path: Path) -> None:
    for name in ("htpasswd", "tokens"):
        given: dict[str, Any] = {name: tmp_path / "absent", "policy": Policy()}
        with pytest.raises(ConfigError, match=r"absent: No such file or directory"):
            open_authenticator(AccessSettings(**given))


def test_a_watcher_looks_at_all_and_ends() -> None:
    looked = [0, 0]
    changed = threading.Event()

    class One:
        def __init__(self, number: int) -> None:
            self._number = number

        def refresh(self) -> bool:
            looked[self._number] += 1
            return True

    watcher = Watcher([One(0), One(1)], changed.set, interval=0.01)
    assert changed.wait(PATIENCE)
    watcher.close()
    assert min(looked) > 0
    before = list(looked)
    time.sleep(0.05)
    assert looked == before
