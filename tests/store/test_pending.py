"""Results that follow from results."""

from __future__ import annotations

import pytest

from cas.store.pending import Pending, failed, resolved, then


def test_what_follows_is_begun_once_the_first_has_come() -> None:
    first: Pending[int] = Pending()
    second: Pending[str] = Pending()
    begun: list[int] = []

    def work(value: int) -> Pending[str]:
        begun.append(value)
        return second

    out = then(first, work)
    assert not begun
    first.resolve(1)
    assert begun == [1]
    assert not out.done
    second.resolve("two")
    assert out.done
    assert out.result() == "two"
    assert then(resolved(3), work).result() == "two"


def test_it_fails_as_any_part_of_it_does() -> None:
    error = KeyError("x")

    def raises(_: None) -> Pending[None]:
        raise error

    def never(_: None) -> Pending[None]:
        raise AssertionError

    for out in (
        then(failed(error), never),
        then(resolved(None), raises),
        then(resolved(None), lambda _: failed(error)),
    ):
        assert out.done
        with pytest.raises(KeyError) as raised:
            out.result()
        assert raised.value is error
