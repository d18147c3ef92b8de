"""Directory messages, .casignore and the stat cache: the pure parts of trees."""

from __future__ import annotations

import os
import random
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cas import digest as digests
from cas.client import scan as scanning
from cas.client import tree
from cas.client.errors import BadTree
from cas.client.ignore import Ignore
from cas.client.statcache import SETTLED_NS, Look, StatCache, look
from cas.client.tree import FileNode, FolderNode, Folders, LinkNode, Listing
from cas.digest import SHA256
from cas.pb import remote_execution_pb2 as pb

SOME = digests.of(b"some")

names = st.text(
    st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=12
).filter(lambda name: name not in {".", ".."})


@st.composite
def listings(draw: st.DrawFn) -> Listing:
    distinct = draw(st.lists(names, unique=True, max_size=9))
    modes = st.integers(0, 0o777)
    files, folders, links = [], [], []
    for name in distinct:
        kind = draw(st.sampled_from("fdl"))
        digest = digests.of(draw(st.binary(max_size=3)))
        if kind == "f":
            files.append(FileNode(name, digest, draw(modes)))
        elif kind == "d":
            folders.append(FolderNode(name, digest))
        else:
            links.append(LinkNode(name, draw(names)))
    return Listing(tuple(files), tuple(folders), tuple(links), draw(modes))


@given(listings())
def test_names_are_in_the_order_of_their_bytes(listing: Listing) -> None:
    for nodes in (tree.message(listing).files, tree.message(listing).symlinks):
        encoded = [node.name.encode() for node in nodes]
        assert encoded == sorted(encoded)


@given(listings(), st.randoms(use_true_random=False))
def test_a_listing_comes_back_and_its_order_does_not_matter(
    listing: Listing, chance: random.Random
) -> None:
    raw = tree.encode(listing)
    files = list(listing.files)
    chance.shuffle(files)
    shuffled = Listing(tuple(files), listing.folders[::-1], listing.links[::-1], listing.mode)
    assert tree.encode(shuffled) == raw
    assert tree.decode(raw, digests.of(raw)) == tree.canonical(listing)


def test_usual_modes_leave_no_trace() -> None:
    plain = Listing((FileNode("a", SOME, 0o644), FileNode("b", SOME, 0o755)), mode=0o755)
    message = tree.message(plain)
    assert [node.is_executable for node in message.files] == [False, True]
    assert not any(node.HasField("node_properties") for node in message.files)
    assert not message.HasField("node_properties")


@given(st.binary(max_size=80))
def test_any_bytes_are_a_listing_or_a_bad_tree(raw: bytes) -> None:
    try:
        listing = tree.decode(raw, SOME)
    except BadTree:
        return
    assert all(tree.check_name(name) for name in listing.names())


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc", "../x", "a\0b"])
@pytest.mark.parametrize("kind", ["files", "directories", "symlinks"])
def test_names_that_lead_elsewhere_are_refused(kind: str, name: str) -> None:
    directory = pb.Directory()
    node = getattr(directory, kind).add(name=name)
    if kind == "symlinks":
        node.target = "x"
    else:
        node.digest.CopyFrom(pb.Digest(hash=SOME.hex, size_bytes=SOME.size))
    with pytest.raises(BadTree, match="cannot be a file's name"):
        tree.read(directory, SHA256, "here")


def test_two_entries_of_one_name_are_refused() -> None:
    directory = pb.Directory()
    directory.symlinks.add(name="a", target="/etc")
    directory.directories.add(name="a").digest.CopyFrom(
        pb.Digest(hash=SOME.hex, size_bytes=SOME.size)
    )
    with pytest.raises(BadTree, match="two entries named 'a'"):
        tree.read(directory, SHA256, "here")


def test_a_tree_that_multiplies_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "MAX_ENTRIES", 1000)
    listings = {}
    below = digests.of(tree.encode(Listing()))
    listings[below.key] = Listing()
    for _ in range(40):
        doubled = Listing(folders=(FolderNode("a", below), FolderNode("b", below)))
        below = digests.of(tree.encode(doubled))
        listings[below.key] = doubled
    with pytest.raises(BadTree, match="more than 1000 entries"):
        list(Folders(below, listings).walk())


@given(st.lists(st.tuples(st.lists(names, max_size=3), st.integers(0, 0o777)), max_size=5))
def test_a_tree_message_comes_back(given_places: list[tuple[list[str], int]]) -> None:
    places: dict[tuple[str, ...], Listing] = {(): Listing()}
    for path, mode in given_places:
        for depth in range(len(path) + 1):
            places.setdefault(tuple(path[:depth]), Listing())
        places[tuple(path)] = Listing((FileNode("\u20ac/"[:1] * 20, SOME),), mode=mode)
    deepest_first = sorted(places.items(), key=lambda item: -len(item[0]))
    folders, raws = tree.build(deepest_first, SHA256)
    raw = tree.to_tree(folders)
    back = tree.from_tree(raw, digests.of(raw))
    assert back == folders
    assert dict(back.walk()).keys() == places.keys()
    assert all(digests.of(raws[key]).key == key for key in raws)


PATTERNS = st.sampled_from(
    ["*.o", "!keep.o", "/build", "build/", "**/tmp", "a/**", "!a/b", "# note", "", "x?", "[ab]"]
)
PATHS = [
    "a/b",
    "a/c.o",
    "a/keep.o",
    "b",
    "build/x",
    "c/build/y",
    "c/tmp/z",
    "keep.o",
    "x1",
    "x.o",
]


@given(st.lists(PATTERNS, max_size=4), st.lists(PATTERNS, max_size=3))
def test_nested_rules_hold_from_where_they_are(above: list[str], inner: list[str]) -> None:
    outer = Ignore().within(0, "\n".join(above), "root")
    both = outer.within(1, "\n".join(inner), "a")
    alone = Ignore().within(1, "\n".join(inner), "a")
    for path in (("a", "b"), ("a", "c.o"), ("a", "build")):
        decided = any(
            spec.check_file("/".join(path[depth:])).include is not None
            for depth, spec in alone.rules
        )
        expected = alone if decided else outer
        assert both.ignores(path, False) == expected.ignores(path, False)


def test_ignored_is_what_git_ignores(tmp_path: Path) -> None:
    for path in PATHS:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(path)
    rules = "*.o\n!keep.o\n/build\nc/**/tmp\n# a comment\n\\#not one\n"
    (tmp_path / ".gitignore").write_text(rules)
    (tmp_path / "a" / ".gitignore").write_text("!c.o\nb\n")
    (tmp_path / ".casignore").write_text(rules)
    (tmp_path / "a" / ".casignore").write_text("!c.o\nb\n")
    subprocess.run(["git", "init", "-q", tmp_path], check=True, timeout=30)
    listed = subprocess.run(
        ["git", "-C", tmp_path, "ls-files", "-coz", "--exclude-standard"],
        check=True,
        timeout=30,
        capture_output=True,
        text=True,
    ).stdout
    found = {"/".join(file.path) for file in scanning.scan(tmp_path).files}
    found = {path for path in found if not path.startswith(".git/")}
    assert found == set(listed.split("\0")) - {""}


def test_what_is_no_file_is_left_out_and_told(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_text("x")
    found = scanning.scan(tmp_path)
    assert [file.path for file in found.files] == [("file",)]
    assert found.skipped == [str(tmp_path / "pipe")]


looks = st.builds(Look, *(st.integers(0, 2**62) for _ in range(4)))
paths = st.binary(min_size=1, max_size=20).filter(lambda path: not path.startswith(b"/"))


@given(st.dictionaries(paths, looks, max_size=8), st.data())
def test_the_stat_cache_gives_back_what_was_saved_and_only_that(
    tmp_path_factory: pytest.TempPathFactory, entries: dict[bytes, Look], data: st.DataObject
) -> None:
    file = tmp_path_factory.mktemp("stat") / "deep" / "files.sqlite"
    gone = data.draw(st.sets(st.sampled_from(sorted(entries)))) if entries else set()
    with StatCache(file) as cache:
        cache.save(b"/r", [(path, seen, SOME.key) for path, seen in entries.items()])
        cache.save(b"/r0", [(b"other", Look(1, 2, 3, 4), SOME.key)])
        cache.save(b"/r", [], gone)
    with StatCache(file) as cache:
        expected = {path: (seen, SOME.key) for path, seen in entries.items() if path not in gone}
        assert cache.load(b"/r") == cache.load(b"/r/") == expected
        assert cache.load(b"/r0").keys() == {b"other"}
        assert cache.load(b"/").keys() >= {b"r0/other"}


def test_a_damaged_stat_cache_is_begun_anew(tmp_path: Path) -> None:
    file = tmp_path / "files.sqlite"
    file.write_bytes(b"this is not a database" * 100)
    with StatCache(file) as cache:
        assert cache.load(b"/r") == {}
        cache.save(b"/r", [(b"a", Look(1, 2, 3, 4), SOME.key)])
        assert cache.load(b"/r").keys() == {b"a"}
    with StatCache(Path("/proc/nowhere/files.sqlite")) as cache:
        cache.save(b"/r", [(b"a", Look(1, 2, 3, 4), SOME.key)])
        assert cache.load(b"/r") == {}


def test_a_file_that_was_just_changed_is_not_remembered(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("one")
    seen = look(file.stat())
    changed = max(seen.mtime_ns, seen.ctime_ns)
    assert not seen.settled(changed)
    assert not seen.settled(changed + SETTLED_NS)
    assert seen.settled(changed + SETTLED_NS + 1)
    found = scanning.scan(tmp_path)
    scanning.hash_group(found.root, found.files, SHA256)
    assert found.files[0].digest == digests.of(b"one")
    assert found.files[0].fresh is None
