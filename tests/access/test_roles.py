"""Who may do what: rules grant, the highest role counts."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cas.access.roles import NOBODY, Grant, Policy, Principal, Role, Rule, matches, role_in

exactly = settings(derandomize=True, max_examples=300, deadline=None)

TEXTS = st.text("ab/:*\n", max_size=8)


@exactly
@given(st.text("ab/:*\n", max_size=6), TEXTS)
def test_a_star_stands_for_any_characters_and_nothing_else_is_special(
    pattern: str, text: str
) -> None:
    oracle = ".*".join(map(re.escape, pattern.split("*")))
    assert matches(pattern, text) == (re.fullmatch(oracle, text, re.DOTALL) is not None)


def test_a_pattern_of_many_stars_takes_no_time() -> None:
    assert not matches("*a" * 2_000 + "b", "a" * 4_000)


@pytest.mark.parametrize(
    ("pattern", "text", "fits"),
    [
        ("", "", True),
        ("", "main", False),
        ("*", "", True),
        ("main", "main", True),
        ("main", "main2", False),
        ("team/*", "team/", True),
        ("team/*", "team", False),
        ("user:a*e", "user:alice", True),
        ("user:ab*bc", "user:abc", False),
        ("[a]", "a", False),
        ("?", "a", False),
    ],
)
def test_patterns(pattern: str, text: str, fits: bool) -> None:
    assert matches(pattern, text) is fits


GRANTS = st.lists(
    st.builds(Grant, st.sampled_from(["*", "", "main", "ma*", "other"]), st.sampled_from(Role))
)


@exactly
@given(GRANTS, st.randoms(use_true_random=False), st.sampled_from(["", "main", "other", "x"]))
def test_the_order_of_grants_does_not_matter(grants: list[Grant], random: object, at: str) -> None:
    shuffled = list(grants)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert role_in(at, shuffled) == role_in(at, grants)


@exactly
@given(GRANTS, st.builds(Grant, st.just("*"), st.sampled_from(Role)), st.sampled_from(["", "main"]))
def test_a_grant_takes_nothing_away(grants: list[Grant], more: Grant, at: str) -> None:
    assert role_in(at, [*grants, more]) == max(role_in(at, grants), more.role)


def test_rules_are_for_principals_in_instances() -> None:
    policy = Policy(
        (
            Rule(Role.READ),
            Rule(Role.WRITE, principal="token:ci-*", instance="main"),
            Rule(Role.ADMIN, principal="user:root"),
        )
    )
    ci = policy.rights(Principal("token:ci-7", trusted=True))
    assert (ci.role("main"), ci.role(""), ci.role("main/sub")) == (Role.WRITE, Role.READ, Role.READ)
    assert policy.rights(Principal("user:root")).role("any") is Role.ADMIN
    assert policy.rights(Principal("user:root2")).role("any") is Role.READ


def test_nobody_is_meant_by_his_own_name_only() -> None:
    assert Policy((Rule(Role.ADMIN),)).rights(NOBODY).highest is Role.NONE
    assert Policy((Rule(Role.ADMIN, principal="anonym*"),)).rights(NOBODY).highest is Role.NONE
    public = Policy((Rule(Role.READ, principal="anonymous", instance="public"),))
    assert public.rights(NOBODY).role("public") is Role.READ
    assert public.rights(NOBODY).role("main") is Role.NONE
    assert Policy(anonymous=Role.READ).rights(NOBODY).role("main") is Role.READ
    assert Policy(anonymous=Role.ADMIN).rights(Principal("user:a")).role("main") is Role.NONE


def test_without_rules_whom_an_operator_listed_may_write() -> None:
    listed, signed = Principal("user:a", trusted=True), Principal("jwt:a")
    assert Policy().rights(listed).role("main") is Role.WRITE
    assert Policy().rights(signed).role("main") is Role.NONE
    with_a_rule = Policy((Rule(Role.READ, principal="user:b"),))
    assert with_a_rule.rights(listed).role("main") is Role.NONE


def test_a_rule_of_claims_needs_each_of_them() -> None:
    rule = Rule(
        Role.WRITE, claims=(("ref", ("refs/heads/main", "refs/tags/*")), ("repository", ("org/*",)))
    )
    policy = Policy((rule,))

    def role(**claims: tuple[str, ...]) -> Role:
        return policy.rights(Principal("jwt:x", claims=claims)).role("")

    assert role(ref=("refs/heads/main",), repository=("org/a",)) is Role.WRITE
    assert role(ref=("refs/tags/v1",), repository=("else/a", "org/a")) is Role.WRITE
    assert role(ref=("refs/heads/x",), repository=("org/a",)) is Role.NONE
    assert role(repository=("org/a",)) is Role.NONE


def test_any_name_of_a_certificate_counts() -> None:
    policy = Policy((Rule(Role.READ, principal="cert:build.example"),))
    principal = Principal("cert:spiffe://x/y", ("cert:build.example",), trusted=True)
    assert policy.rights(principal).role("") is Role.READ


def test_roles_stay_right_for_more_instances_than_are_remembered() -> None:
    rights = Policy((Rule(Role.READ, instance="7*"),)).rights(Principal("user:a"))
    for _ in range(2):
        for number in range(1_500):
            assert rights.role(str(number)) is (Role.READ if str(number)[0] == "7" else Role.NONE)
