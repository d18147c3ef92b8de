"""What an operator removes: records first, then files; instance by instance."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from cas import digest as digests
from cas.digest import FUNCTIONS, Digest
from cas.errors import InvalidArgument, NotFound
from cas.index import aging
from cas.index.lmdb import Index
from cas.reapi.instances import is_namespace_of, namespace
from cas.store import administration
from cas.store.administration import Administration
from cas.store.directory import prepare
from cas.store.files import Files
from cas.store.interface import NewAction, NewValue
from cas.store.layout import Layout
from cas.store.local import LocalStore, StoreOptions, open_store
from tests.shelves import Shelves

PATIENCE = 40.0


@pytest.fixture
def directory(tmp_path: Path, shelves: Shelves) -> Iterator[Path]:
    with ExitStack() as stack:
        stack.enter_context(shelves.lent(tmp_path / "store"))
        stack.callback(prepare(tmp_path / "store").close)
        yield tmp_path / "store"


@pytest.fixture
def store(directory: Path) -> Iterator[LocalStore]:
    opened = open_store(directory, StoreOptions(durability="none"))
    yield opened
    opened.close()


def put(store: LocalStore, data: bytes) -> Digest:
    digest = digests.of(data)
    store.put([(digest, data)])[0].wait(PATIENCE)
    return digest


def act(
    store: LocalStore, instance: str, action: Digest, result: bytes = b"", author: str = "a b c"
) -> None:
    new = NewAction(result, [], expanded=True, author=author)
    store.put_action(instance, action, new).wait(PATIENCE)


def files(directory: Path) -> list[Path]:
    return [path for path in (directory / "blobs").rglob("*") if path.is_file()]


@pytest.mark.parametrize("size", [100, 100_000])
def test_a_deleted_blob_is_gone_and_can_come_again(
    store: LocalStore, directory: Path, size: int
) -> None:
    data = bytes(size - 1) + b"x"
    digest = put(store, data)
    other = put(store, b"y" * size)
    if size > store.inline_threshold:
        held = store.open(digest)
    store.administration().delete_blob(digest)
    assert not store.contains(digest)
    assert store.contains(other)
    assert len(files(directory)) == (1 if size > store.inline_threshold else 0)
    if size > store.inline_threshold:
        # Who reads it now reads on.
        view = memoryview(bytearray(size))
        assert held.read_into(view, 0) == size
        assert bytes(view) == data
        held.close()
    with pytest.raises(NotFound, match=digest.hex):
        store.administration().delete_blob(digest)
    put(store, data)
    assert store.contains(digest)


def test_a_blob_in_use_can_be_deleted(store: LocalStore) -> None:
    digest = put(store, b"x" * 150_000)
    assert store.present([digest.key])
    store.administration().delete_blob(digest)
    assert not store.contains(digest)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_empty_blob_stays(store: LocalStore, function: digests.Function) -> None:
    with pytest.raises(InvalidArgument, match="empty blob"):
        store.administration().delete_blob(digests.empty(function))
    assert store.contains(digests.empty(function))


def test_an_action_result_that_needs_a_deleted_blob_is_incomplete(store: LocalStore) -> None:
    digest = put(store, b"x" * 150_000)
    action = digests.of(b"action")
    store.put_action("", action, NewAction(b"r", [digest.key], expanded=True)).wait(PATIENCE)
    store.administration().delete_blob(digest)
    found = store.action("", action)
    assert found is not None
    assert not found.complete


@pytest.mark.parametrize("stop", ["before-remove", "before-commit", "after-commit", "remove"])
def test_a_crash_leaves_no_record_that_names_nothing(directory: Path, stop: str) -> None:
    class Crash(BaseException):
        pass

    with_file = open_store(directory, StoreOptions(durability="none"))
    digest = put(with_file, b"x" * 150_000)
    with_file.close()

    layout = Layout(directory)
    armed = [True]

    def reach(*where: object) -> None:
        if armed[0] and where[0] == stop:
            raise Crash

    index = Index(layout.index, sync=False, seam=reach)
    try:
        removal = Administration(index, Files(seam=reach), layout)
        with pytest.raises(Crash):
            removal.delete_blob(digest)
        armed[0] = False
        known = index.contains(digest.key)
        assert known is (stop in ("before-remove", "before-commit"))
        assert len(files(directory)) == 1
        # What is to go is noted, for the next janitor.
        assert len(aging.condemned(index)) == (0 if known else 1)
    finally:
        index.close()


def test_an_action_result_is_deleted_in_its_instance_alone(store: LocalStore) -> None:
    action = digests.of(b"action")
    for instance in ("", "main", "main/sub"):
        act(store, instance, action)
    store.administration().delete_action("main", action)
    assert store.action("main", action) is None
    assert store.action("", action) is not None
    assert store.action("main/sub", action) is not None
    with pytest.raises(NotFound, match="in instance 'main'"):
        store.administration().delete_action("main", action)


def test_who_wrote_what(store: LocalStore) -> None:
    action = digests.of(b"action")
    act(store, "main", action, author="token:ci ipv4:10.0.0.1:5 bazel 7.1.0")
    record = store.administration().written("main", action)
    assert record.author == "token:ci ipv4:10.0.0.1:5 bazel 7.1.0"
    with pytest.raises(NotFound):
        store.administration().written("", action)


def test_records_are_listed_page_by_page(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(administration, "PIECE", 7)
    actions = [digests.of(str(number).encode()) for number in range(30)]
    for action in actions:
        act(store, "main", action)
        act(store, "main2", action)
    assert listed(store, "main") == sorted(action.hash for action in actions)
    assert listed(store, "") == []
    assert listed(store, "mai") == []
    with pytest.raises(InvalidArgument, match="page token"):
        store.administration().list_written("main", b"\0main2\0")


def listed(store: LocalStore, instance: str) -> list[bytes]:
    found = []
    after = None
    while True:
        page = store.administration().list_written(instance, after)
        found += [written.hash for written in page.found]
        after = page.next
        if after is None:
            return found


def test_a_dropped_instance_takes_nothing_of_others(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(administration, "PIECE", 7)
    blob = put(store, b"x" * 150_000)
    instances = ("", "a", "ab", "a/b")
    kinds = ("ac", "cache", "webdav")
    for number in range(20):
        for instance in instances:
            act(store, instance, digests.of(str(number).encode()))
            for kind in kinds:
                value = NewValue(digests.of(b"v"), b"v")
                store.put_value(namespace(kind, instance), f"k{number}", value).wait(PATIENCE)

    def left(instance: str) -> int:
        values = sum(
            store.value(namespace(kind, instance), f"k{number}") is not None
            for number in range(20)
            for kind in kinds
        )
        return values + len(listed(store, instance))

    assert sum(store.administration().drop_instance("a", is_namespace_of)) == 80
    assert [left(instance) for instance in instances] == [80, 0, 80, 80]
    assert sum(store.administration().drop_instance("", is_namespace_of)) == 80
    assert [left(instance) for instance in instances] == [0, 0, 80, 80]
    assert sum(store.administration().drop_instance("never", is_namespace_of)) == 0
    assert store.contains(blob)
