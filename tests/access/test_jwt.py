"""JWTs: who issued them, for whom, with which key; and what they grant."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import jwt as pyjwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from cas.access import keys
from cas.access.jwt import Issuers, Verified, open_issuer
from cas.access.keys import UrlKeys
from cas.access.roles import Policy, Role, Rule
from cas.access.settings import ALGORITHMS, JwtSettings
from cas.errors import ConfigError, Unauthenticated
from tests.access import issuing
from tests.access.issuing import AUDIENCE, ISSUER


def settings(jwks: Path | str, **more: Any) -> JwtSettings:
    return JwtSettings(**{"issuer": ISSUER, "audience": (AUDIENCE,), "jwks": str(jwks), **more})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A JWKS with a key of each kind, all with ids."""
    path = tmp_path / "jwks.json"
    entries = [issuing.jwk(a, kid) for a, kid in zip(ALGORITHMS, ("rsa", "ec", "one"), strict=True)]
    path.write_text(issuing.jwks(*entries))
    return path


def verify(file: Path, token: str, **more: Any) -> Verified:
    return Issuers([open_issuer(settings(file, **more))]).verify(token)


@pytest.mark.parametrize(
    ("algorithm", "kid"), [*zip(ALGORITHMS, ("rsa", "ec", "one"), strict=True)]
)
def test_a_token_names_its_principal(file: Path, algorithm: str, kid: str) -> None:
    exp = int(time.time()) + 100
    token = issuing.token(algorithm, kid, sub="repo:org/x", exp=exp)
    principal, until = verify(file, token, leeway=5.0)
    assert principal.name == "jwt:repo:org/x"
    assert not principal.trusted
    assert until == exp + 5
    assert verify(file, issuing.token(algorithm, None)).principal.name == "jwt:someone"


NOW = int(time.time())


@pytest.mark.parametrize(
    ("token", "said"),
    [
        (issuing.token(iss="https://other.example"), "issuer is not one that is trusted"),
        (issuing.token(iss=None), "issuer is not one that is trusted"),
        (issuing.token(aud="other"), "for another audience"),
        (issuing.token(aud=None), "lacks one of the claims"),
        (issuing.token(exp=None), "lacks one of the claims"),
        (issuing.token(exp=NOW - 3_600), "has expired"),
        (issuing.token(nbf=NOW + 3_600), "is not valid yet"),
        (issuing.token(sub=None), "sub claim names nobody"),
        (issuing.token(sub="a\nb"), "sub claim names nobody"),
        (issuing.token(kid="unknown"), "a key that is not its issuer's"),
        (issuing.token(kid="rsa"), "a key that is not its issuer's"),
        (issuing.token(number=1), "signature is wrong"),
        (issuing.confused("RS256"), "algorithm is not one of RS256, ES256, EdDSA"),
        (issuing.confused("EdDSA"), "algorithm is not one of RS256, ES256, EdDSA"),
        (
            issuing.by_hand({"alg": "none"}, issuing.claims()),
            "algorithm is not one of RS256, ES256, EdDSA",
        ),
        (issuing.by_hand({"alg": "EdDSA", "kid": "one"}, issuing.claims()), "signature is wrong"),
        (
            issuing.by_hand({"alg": "EdDSA", "crit": ["x"], "x": 1}, issuing.claims(), b"x"),
            "token",
        ),
        (issuing.token().rpartition(".")[0], "neither a known one nor a JWT"),
        ("a.b.c", "neither a known one nor a JWT"),
        ("..", "neither a known one nor a JWT"),
        ("x" * 20_000, "more than 16384 bytes"),
    ],
)
def test_what_is_said_of_a_wrong_token(file: Path, token: str, said: str) -> None:
    with pytest.raises(Unauthenticated, match=said) as caught:
        verify(file, token)
    for part in token.split("."):
        assert len(part) < 8 or part not in str(caught.value)


def test_a_token_signed_with_more_than_is_allowed(file: Path) -> None:
    token = issuing.token("RS256", "rsa")
    verify(file, token)
    with pytest.raises(Unauthenticated, match="not one of EdDSA"):
        verify(file, token, algorithms=("EdDSA",))


def test_a_key_that_the_token_brings_is_not_looked_at(file: Path) -> None:
    headers = {"kid": "one", "jwk": issuing.jwk("EdDSA", "one", 1), "jku": "http://127.0.0.1:1/"}
    token = pyjwt.encode(issuing.claims(), issuing.key("EdDSA", 1), "EdDSA", headers=headers)
    with pytest.raises(Unauthenticated, match="signature is wrong"):
        verify(file, token)


def test_clocks_may_differ_by_the_leeway(file: Path) -> None:
    token = issuing.token(exp=int(time.time()) - 20)
    assert verify(file, token, leeway=60.0).principal.name == "jwt:someone"
    with pytest.raises(Unauthenticated, match="expired"):
        verify(file, token, leeway=0.0)


def test_one_of_several_audiences_is_enough(file: Path) -> None:
    verify(file, issuing.token(aud=["x", AUDIENCE]), audience=("y", AUDIENCE))


@pytest.mark.parametrize(
    ("claims", "roles"),
    [
        ({"cas_role": "write"}, (Role.NONE, Role.NONE)),
        ({"cas_role": "write", "cas_instance": "main"}, (Role.NONE, Role.WRITE)),
        ({"cas_role": ["read", "x"], "cas_instance": ["", "main"]}, (Role.READ, Role.READ)),
        ({"cas_role": "write", "cas_instance": "*"}, (Role.NONE, Role.NONE)),
        ({"cas_role": "owner", "cas_instance": "main"}, (Role.NONE, Role.NONE)),
        ({"cas_role": 3, "cas_instance": "main"}, (Role.NONE, Role.NONE)),
        ({"cas_instance": "main"}, (Role.NONE, Role.NONE)),
    ],
)
def test_claims_name_role_and_instances(
    file: Path, claims: dict[str, Any], roles: tuple[Role, Role]
) -> None:
    token = issuing.token(**claims)
    found = verify(file, token, role_claim="cas_role", instance_claim="cas_instance")
    rights = Policy().rights(found.principal)
    assert (rights.role(""), rights.role("main")) == roles


def test_a_role_without_instances_is_for_all(file: Path) -> None:
    found = verify(file, issuing.token(cas_role="admin"), role_claim="cas_role")
    assert Policy().rights(found.principal).role("any") is Role.ADMIN


def test_claims_fit_rules(file: Path) -> None:
    policy = Policy(
        (Rule(Role.WRITE, claims=(("repository", ("org/*",)), ("protected", ("true",)))),)
    )
    right = verify(file, issuing.token(repository="org/x", protected=True))
    wrong = verify(file, issuing.token(repository="org/x", protected=False))
    assert policy.rights(right.principal).role("") is Role.WRITE
    assert policy.rights(wrong.principal).role("") is Role.NONE


def test_issuers_do_not_vouch_for_each_others_people(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text(issuing.jwks(issuing.jwk("EdDSA", "one")))
    two.write_text(issuing.jwks(issuing.jwk("EdDSA", "one", 1)))
    issuers = Issuers(
        [
            open_issuer(settings(one)),
            open_issuer(settings(two, name="sso", issuer="https://sso.example")),
        ]
    )
    assert issuers.verify(issuing.token()).principal.name == "jwt:someone"
    other = issuing.token(number=1, iss="https://sso.example")
    assert issuers.verify(other).principal.name == "sso:someone"
    with pytest.raises(Unauthenticated, match="signature is wrong"):
        issuers.verify(issuing.token(iss="https://sso.example"))


# --- keys


def weak() -> dict[str, Any]:
    key = rsa.generate_private_key(65537, 1024)
    entry: dict[str, Any] = pyjwt.algorithms.RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)
    return entry


@pytest.mark.parametrize(
    "entry",
    [
        {"kty": "oct", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0", "alg": "HS256", "kid": "one"},
        {**issuing.jwk("EdDSA", "one"), "use": "enc"},
        {**issuing.jwk("RS256", "one"), "alg": "RS512"},
        {**issuing.jwk("EdDSA", "one"), "d": "AAAA"},
        {"kty": "RSA", "n": "AQAB"},
        {"kty": "OKP", "crv": "X25519", "x": "A" * 43},
        {"kty": "EC", "crv": "P-521", "x": "AA", "y": "AA"},
        weak(),
        "text",
        None,
    ],
)
def test_keys_that_cannot_be_used_are_left_out(entry: Any) -> None:
    with pytest.raises(ValueError, match="no key for"):
        keys.parse(json.dumps({"keys": [entry]}))
    parsed = keys.parse(json.dumps({"keys": [entry, issuing.jwk("ES256", "other")]}))
    assert parsed.find("one", "EdDSA") is None
    assert parsed.find("other", "ES256") is not None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"keys": 1}', "[" * 100_000, '{"keys": []}'])
def test_what_is_no_jwks(text: str) -> None:
    with pytest.raises(ValueError, match=r"JWKS|no key"):
        keys.parse(text)


def test_without_an_id_the_only_key_of_its_kind_is_meant() -> None:
    one, two = issuing.jwk("EdDSA", None), issuing.jwk("EdDSA", "two", 1)
    assert keys.parse(issuing.jwks(one)).find(None, "EdDSA") is not None
    assert keys.parse(issuing.jwks(one, two)).find(None, "EdDSA") is None


def test_a_file_that_is_wrong_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent: No such file"):
        open_issuer(settings(tmp_path / "absent"))
    (tmp_path / "wrong").write_text("{}")
    with pytest.raises(ConfigError, match=r"wrong: not a JWKS"):
        open_issuer(settings(tmp_path / "wrong"))


@pytest.mark.parametrize(
    "url", ["http://issuer.example/jwks", "ftp://x/y", "https://u:p@issuer.example/", "https://"]
)
def test_keys_do_not_come_over_just_any_url(url: str) -> None:
    with pytest.raises(ConfigError, match="jwks of jwt: expected an https URL") as caught:
        open_issuer(settings(url))
    assert "u:p" not in str(caught.value)


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def test_keys_from_a_url_are_asked_for_in_the_background_and_when_one_is_unknown() -> None:
    answers: dict[str, Any] = {"text": issuing.jwks(issuing.jwk("EdDSA", "one"))}
    clock = Clock()
    with issuing.published(answers) as url:
        source = UrlKeys(url, clock)
        assert source.refresh()
        assert not source.refresh()
        assert source.find("one", "EdDSA") is not None
        assert answers["asked"] == 1

        answers["text"] = issuing.jwks(issuing.jwk("EdDSA", "two", 1))
        assert source.find("two", "EdDSA") is None
        assert answers["asked"] == 1, "unknown keys alone must not make us ask again and again"
        clock.now += keys.EARLIEST
        assert source.find("two", "EdDSA") is not None
        assert source.find("one", "EdDSA") is None

        answers["status"] = 500
        clock.now += keys.KEPT
        assert not source.refresh()
        assert source.find("two", "EdDSA") is not None, "what is known stays"
        answers["status"] = 200
        answers["text"] = issuing.jwks(issuing.jwk("EdDSA", "three"))
        clock.now += keys.RETRY
        assert source.refresh()
        assert source.find("three", "EdDSA") is not None


def test_an_answer_that_leads_elsewhere_or_is_too_long_is_none(
    caplog: pytest.LogCaptureFixture,
) -> None:
    good: dict[str, Any] = {"text": issuing.jwks(issuing.jwk("EdDSA", "one"))}
    with issuing.published(good) as target:
        bad: dict[str, Any] = {"text": "", "status": 302, "location": target}
        with issuing.published(bad) as url:
            assert not UrlKeys(url).refresh()
    assert good["asked"] == 0
    with issuing.published({"text": good["text"] + " " * keys.MAX_BYTES}) as url:
        assert not UrlKeys(url).refresh()
    reasons = [record.__dict__["reason"] for record in caplog.records]
    assert reasons == ["status 302", f"the answer is larger than {keys.MAX_BYTES} bytes"]
