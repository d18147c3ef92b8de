"""Files of passwords and tokens: what they may hold, and what is said of the rest."""

from __future__ import annotations

import hashlib

import bcrypt
import pytest

from cas.access import htpasswd, tokens

SECRET = "correct-horse-battery"
HASH = bcrypt.hashpw(SECRET.encode(), bcrypt.gensalt(4)).decode()


def test_a_password_is_its_users() -> None:
    apache = HASH.replace("$2b$", "$2y$")
    users = htpasswd.parse(f"# people\n\nalice:{apache}\r\nbob:{HASH}\n")
    assert users.verify("alice", SECRET.encode())
    assert users.verify("bob", SECRET.encode())
    assert not users.verify("alice", b"")
    assert not users.verify("alice", SECRET.encode() + b"x")
    assert not users.verify("carol", SECRET.encode())
    assert not users.verify("alice", b"\0")


def test_a_password_counts_as_far_as_htpasswd_takes_it() -> None:
    long = b"x" * 72
    users = htpasswd.parse(f"a:{bcrypt.hashpw(long, bcrypt.gensalt(4)).decode()}")
    assert users.verify("a", long + b"tail")
    assert not users.verify("a", long[:-1])


def test_nobody_is_looked_for_as_long_as_somebody(monkeypatch: pytest.MonkeyPatch) -> None:
    costs = []

    def checkpw(password: bytes, known: bytes) -> bool:
        costs.append(known[4:6])
        return bcrypt_checkpw(password, known)

    bcrypt_checkpw = bcrypt.checkpw
    monkeypatch.setattr(bcrypt, "checkpw", checkpw)
    costlier = bcrypt.hashpw(b"x", bcrypt.gensalt(5)).decode()
    users = htpasswd.parse(f"a:{costlier}")
    users.verify("a", b"y")
    users.verify("nobody", b"y")
    assert costs == [b"05", b"05"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("alice", "line 1: expected name:hash"),
        (f"ok:{HASH}\n:{HASH}", "line 2: expected name:hash"),
        (f"alice:{SECRET}", "line 1: the hash is not bcrypt's"),
        ("alice:$apr1$x$y", "line 1: the hash is not bcrypt's"),
        (f"alice:{HASH[:-1]}", "line 1: the hash is not bcrypt's"),
        (f"alice:{HASH}:x", "line 1: the hash is not bcrypt's"),
        (f"alice:$2b$31${HASH[7:]}", "line 1: bcrypt's cost is 31, expected 4 to 16"),
        (f"alice:{HASH}\nalice:{HASH}", "line 2: this user was there before"),
    ],
    # Salts differ in each process, and the names of tests must not.
    ids=range(8),
)
def test_what_is_said_of_a_wrong_htpasswd(text: str, said: str) -> None:
    with pytest.raises(ValueError, match="line") as caught:
        htpasswd.parse(text)
    assert str(caught.value).startswith(said)
    assert SECRET not in str(caught.value)
    assert HASH[7:] not in str(caught.value)


def test_a_token_is_its_names() -> None:
    hashed = hashlib.sha256(b"another-long-token").hexdigest()
    parsed = tokens.parse(f"# keys\nci {SECRET}\n\nci  sha256:{hashed}\nlaptop\tsome-other-token\n")
    assert parsed.name(SECRET) == "ci"
    assert parsed.name("another-long-token") == "ci"
    assert parsed.name("some-other-token") == "laptop"
    assert parsed.name(f"sha256:{hashed}") is None
    assert parsed.name("") is None
    assert SECRET not in repr(vars(parsed))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ci", "line 1: expected a name and a token"),
        (f"ci {SECRET} more", "line 1: expected a name and a token"),
        ("ci short-secret", "line 1: expected a token of at least 16 characters"),
        ("ci sha256:abcdefabcdefabcdef", "line 1: expected a token of at least 16 characters"),
        ("ci naïve-secret-of-some-length", "line 1: expected a token of at least 16 characters"),
        (f"a {SECRET}\nb {SECRET}", "line 2: this token is another name's as well"),
    ],
)
def test_what_is_said_of_a_wrong_file_of_tokens(text: str, said: str) -> None:
    with pytest.raises(ValueError, match="line") as caught:
        tokens.parse(text)
    assert str(caught.value).startswith(said)
    for word in text.split():
        assert len(word) < 8 or word not in str(caught.value)
