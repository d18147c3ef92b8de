"""Digests: every function's values, and what text and keys are read as."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from cas import digest as digests
from cas.digest import (
    BLAKE3,
    ENABLED,
    FUNCTIONS,
    KNOWN,
    MAX_SIZE,
    MD5,
    SEVERAL_THREADS,
    SHA1,
    SHA256,
    SHA256TREE,
    Function,
    functions,
)
from cas.errors import DataLoss, DigestMismatch, InvalidArgument
from cas.pb import remote_execution_pb2 as pb
from tests.plainly import sha256tree

THEIRS: dict[str, Callable[[bytes], bytes]] = {
    "sha256": lambda data: hashlib.sha256(data).digest(),
    "blake3": lambda data: blake3(data).digest(),
    "sha1": lambda data: hashlib.sha1(data).digest(),
    "sha384": lambda data: hashlib.sha384(data).digest(),
    "sha512": lambda data: hashlib.sha512(data).digest(),
    "md5": lambda data: hashlib.md5(data).digest(),
    "sha256tree": sha256tree,
}

each_function = pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.name)
bounded = settings(derandomize=True, max_examples=100, deadline=None)


def test_every_function_has_reapis_number_and_its_own_code() -> None:
    assert {f.name for f in FUNCTIONS} == set(THEIRS)
    for function in FUNCTIONS:
        assert pb.DigestFunction.Value.Name(function.number) == function.name.upper()
    assert len({f.code for f in FUNCTIONS}) == len(FUNCTIONS)
    # Action results and values have keys of their own.
    assert all(0 < f.code < 255 for f in FUNCTIONS)


@each_function
@pytest.mark.parametrize("size", [0, 3, 1024, 1025, SEVERAL_THREADS + 1])
def test_hashes(function: Function, size: int) -> None:
    data = random.Random(size).randbytes(size)
    digest = digests.of(data, function)
    assert digest.hash == THEIRS[function.name](data)
    assert (len(digest.hash), digest.function) == (function.length, function)
    for announced in (0, size):
        hasher = function.new(announced)
        hasher.update(memoryview(data)[:2])
        hasher.update(data[2:])
        digests.check(digest, hasher, size)
    digests.verify(digest, bytearray(data))
    with pytest.raises(DigestMismatch, match=digest.hex):
        digests.verify(digest, data + b"x")


@bounded
@given(st.sampled_from(FUNCTIONS), st.integers(0, MAX_SIZE), st.randoms(use_true_random=False))
def test_keys_tell_the_digest(function: Function, size: int, rng: random.Random) -> None:
    digest = digests.make(function, rng.randbytes(function.length), size)
    assert digests.from_key(digest.key) == digest
    for wrong in (digest.key[: function.length], bytes((200,)) + digest.key[1:], b""):
        with pytest.raises(DataLoss):
            digests.from_key(wrong)


@each_function
def test_one_hash_of_two_functions_is_two_digests(function: Function) -> None:
    others = [f for f in FUNCTIONS if f.length == function.length and f is not function]
    digest = digests.of(b"x", function)
    assert all(digests.make(f, digest.hash, 1).key != digest.key for f in others)


@each_function
def test_the_length_of_a_hash_tells_those_that_names_omit(function: Function) -> None:
    digest = digests.of(b"x", function)
    assert digests.parse(digest.hex, 1, function) == digest
    if function.in_names:
        # REAPI: so it is SHA-256's.
        assert digests.parse(digest.hex, 1).function is SHA256
    else:
        assert digests.parse(digest.hex, 1) == digest


def test_what_is_not_served_is_refused_by_what_is() -> None:
    served = functions((SHA256, BLAKE3))
    assert served == ENABLED
    assert served.of_number(0) is None
    assert served.of_number(9) is BLAKE3
    for number, named in (
        (2, r"2 \(sha1\)"),
        (7, r"7 \(murmur3\)"),
        (10, r"10 \(gitsha1\)"),
        (77, "77"),
    ):
        with pytest.raises(InvalidArgument, match=rf"{named} .*1 \(sha256\), 9 \(blake3\)"):
            served.of_number(number)
    assert served.of_hash("0" * 64) is SHA256
    for length in (0, 32, 40, 63, 96, 128):
        with pytest.raises(InvalidArgument, match=rf"{length} char.*64 \(sha256\), 64 \(blake3"):
            served.of_hash("0" * length)
    assert served.of_name("blake3") is BLAKE3
    assert served.of_name("main") is None
    with pytest.raises(InvalidArgument, match=r"'sha256tree' is not served.*9 \(blake3\)"):
        served.of_name("sha256tree")
    with pytest.raises(InvalidArgument, match="'sha256' is left out"):
        served.of_name("sha256")


def test_a_length_means_nothing_where_its_function_is_not_served() -> None:
    with pytest.raises(InvalidArgument, match=r"64 \(blake3, named\)"):
        digests.parse("0" * 64, 1, None, functions((BLAKE3, SHA1)))
    assert digests.parse("0" * 40, 1, None, functions((BLAKE3, SHA1))).function is SHA1
    assert digests.parse("0" * 32, 1, None, KNOWN).function is MD5


def test_a_digest_reads_as_names_have_it() -> None:
    assert str(digests.of(b"", SHA256)) == f"{hashlib.sha256().hexdigest()}/0"
    assert str(digests.of(b"x", BLAKE3)) == f"blake3/{blake3(b'x').hexdigest()}/1"
    assert str(digests.of(b"x", SHA256TREE)) == f"sha256tree/{hashlib.sha256(b'x').hexdigest()}/1"
