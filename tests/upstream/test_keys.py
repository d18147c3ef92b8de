"""The layout upstream: each key names one thing, and tells it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cas.digest import BLAKE3, FUNCTIONS, SHA256, Function
from cas.errors import InvalidArgument
from cas.reapi.instances import check_instance
from cas.upstream import keys

HASH = bytes(range(0xA0, 0xC0))


def _is_instance(name: str) -> bool:
    try:
        check_instance(name)
    except InvalidArgument:
        return False
    return True


INSTANCES = st.text(
    st.sampled_from("aZ0-_./=%~ é\U0001f600") | st.characters(codec="utf-8"), max_size=40
).filter(_is_instance)


@st.composite
def prefixes(draw: st.DrawFn) -> tuple[bytes, Function]:
    function = draw(st.sampled_from(FUNCTIONS))
    raw = draw(st.binary(min_size=function.length, max_size=function.length))
    return function.prefix + raw, function


def test_the_documented_forms() -> None:
    hex_hash = HASH.hex()
    assert keys.blob(SHA256.prefix + HASH, SHA256) == f"v1/cas/sha256/a0/{hex_hash}"
    assert keys.blob(BLAKE3.prefix + HASH, BLAKE3) == f"v1/cas/blake3/a0/{hex_hash}"
    action = keys.action("team/main", SHA256.prefix + HASH, SHA256)
    assert action == f"v1/ac/team=2Fmain/sha256/a0/{hex_hash}"
    assert keys.action("", SHA256.prefix + HASH, SHA256) == f"v1/ac/=/sha256/a0/{hex_hash}"
    assert keys.quarantined(action, "1") == f"v1/quarantine/ac/team=2Fmain/sha256/a0/{hex_hash}.1"


@given(prefixes())
@settings(max_examples=100, derandomize=True)
def test_a_blobs_key_tells_the_blob(prefix: tuple[bytes, Function]) -> None:
    assert keys.parse(keys.blob(*prefix)) == (prefix[0], None)


@given(INSTANCES, prefixes())
@settings(max_examples=200, derandomize=True)
def test_an_actions_key_tells_the_action(instance: str, prefix: tuple[bytes, Function]) -> None:
    key = keys.action(instance, *prefix)
    assert keys.parse(key) == (prefix[0], instance)
    assert key.isascii()
    assert len(key) <= 1024
    assert not {"", ".", ".."} & {*key.split("/")}


@given(INSTANCES, INSTANCES)
@settings(max_examples=200, derandomize=True)
def test_no_two_instances_share_a_segment(one: str, other: str) -> None:
    assert (keys.escape(one) == keys.escape(other)) == (one == other)
    assert "/" not in keys.escape(one)


@given(st.text(st.sampled_from("v1/caset25609f=ABm"), max_size=90))
@settings(max_examples=300, derandomize=True)
def test_other_keys_are_none(text: str) -> None:
    place = keys.parse(text)
    assert place is None or text in (
        *(keys.blob(place.prefix, function) for function in FUNCTIONS),
        *(keys.action(place.instance or "", place.prefix, function) for function in FUNCTIONS),
    )


@pytest.mark.parametrize(
    "key",
    [
        "v2/cas/sha256/a0/" + HASH.hex(),
        "v1/cas/sha256/a1/" + HASH.hex(),
        "v1/cas/sha256/a0/" + HASH.hex().upper(),
        "v1/cas/sha256/a0/" + HASH.hex()[:-1],
        "v1/cas/sha3/a0/" + HASH.hex(),
        "v1/cas/sha256/a0/" + HASH.hex() + "/x",
        "v1/ac/sha256/a0/" + HASH.hex(),
        "v1/ac/a=2f/sha256/a0/" + HASH.hex(),
        "v1/ac/a=41/sha256/a0/" + HASH.hex(),
        "v1/ac/=FF/sha256/a0/" + HASH.hex(),
        "v1",
        "",
    ],
)
def test_what_is_nearly_a_key_is_none(key: str) -> None:
    assert keys.parse(key) is None
