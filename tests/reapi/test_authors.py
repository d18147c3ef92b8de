"""Who wrote something, as one line."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from cas.reapi.authors import Author, pack, unpack

exactly = settings(derandomize=True, max_examples=200, deadline=None)

WORDS = st.text("ab:*/@.-", min_size=1, max_size=20)


@exactly
@given(WORDS, WORDS, st.text("ab 7.1", max_size=20).map(str.strip))
def test_what_was_packed_is_read_back(principal: str, peer: str, tool: str) -> None:
    assert unpack(pack(principal, peer, tool)) == Author(principal, peer, tool)


@exactly
@given(st.text(max_size=500), st.text(max_size=500), st.text(max_size=500))
def test_authors_are_one_line(principal: str, peer: str, tool: str) -> None:
    packed = pack(principal, peer, tool)
    assert packed.isprintable()
    assert len(packed) <= 1000
    read = unpack(packed)
    assert " " not in read.principal
    assert " " not in read.peer


def test_nobody_is_anonymous() -> None:
    assert unpack(pack("", "", "")) == Author("anonymous", "unknown", "")
