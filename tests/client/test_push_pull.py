"""Trees to a server and back."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cas import digest as digests
from cas.client import statcache, tree
from cas.client.blobcache import BlobCache, Links
from cas.client.errors import BadTree, Unavailable
from cas.client.progress import Progress
from cas.client.retry import Retry
from cas.client.source import of_bytes
from cas.client.sync import Client
from cas.client.tree import FileNode, FolderNode, LinkNode, Listing
from cas.digest import Digest
from cas.errors import NotFound
from cas.pb import remote_execution_pb2 as pb
from tests.client import trees
from tests.conformance.serving import Server


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url) as client:
        yield client


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files count as settled at once: nothing in these tests changes twice within a tick."""
    monkeypatch.setattr(statcache, "SETTLED_NS", -1)


def test_a_tree_comes_back_as_it_was(client: Client, tmp_path: Path) -> None:
    trees.make(tmp_path / "in")
    progress = Progress()
    pushed = client.push_tree(tmp_path / "in", progress=progress)
    assert (pushed.files, pushed.folders, pushed.links) == (9, 4, 3)
    assert progress.done == progress.total == pushed.bytes
    progress = Progress()
    pulled = client.pull_tree(pushed.root, tmp_path / "out", progress=progress)
    assert trees.read(tmp_path / "out") == trees.read(tmp_path / "in")
    assert (pulled.files, pulled.bytes) == (pushed.files, pushed.bytes)
    assert progress.done == progress.total
    assert progress.files_done == progress.files == 9


def test_a_second_push_sends_nothing_and_reads_nothing(
    client: Client, tmp_path: Path, at_once: None
) -> None:
    trees.make(tmp_path / "in")
    cache = tmp_path / "cache"
    first = client.push_tree(tmp_path / "in", cache=cache)
    assert first.sent_blobs > 0
    assert first.hashed == first.files
    again = client.push_tree(tmp_path / "in", cache=cache)
    assert (again.sent_blobs, again.sent_bytes, again.hashed) == (0, 0, 0)
    assert again.root == first.root
    (tmp_path / "in" / "secret").write_bytes(b"changed")
    third = client.push_tree(tmp_path / "in", cache=cache)
    assert third.hashed == 1
    assert third.root != first.root


def test_a_change_that_hides_its_size_and_time_is_found(
    client: Client, tmp_path: Path, at_once: None
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    (source / "file").write_bytes(b"one")
    first = client.push_tree(source, cache=tmp_path / "cache")
    before = (source / "file").stat()
    (source / "file").write_bytes(b"two")
    os.utime(source / "file", ns=(before.st_atime_ns, before.st_mtime_ns))
    again = client.push_tree(source, cache=tmp_path / "cache")
    assert again.root != first.root


def test_only_what_differs_is_fetched_and_written(client: Client, tmp_path: Path) -> None:
    trees.make(tmp_path / "in")
    root = client.push_tree(tmp_path / "in").root
    out = tmp_path / "out"
    client.pull_tree(root, out)
    untouched = (out / "a" / "plain").stat()
    (out / "secret").write_bytes(b"FOR ME")
    (out / "program").chmod(0o644)
    (out / "dangling").unlink()
    (out / "own").write_text("stays")
    pulled = client.pull_tree(root, out)
    assert pulled.written == 2
    assert (out / "a" / "plain").stat().st_mtime_ns == untouched.st_mtime_ns
    assert (out / "a" / "plain").stat().st_ino == untouched.st_ino
    found = trees.read(out)
    assert found.pop("own")[2] == b"stays"
    assert found == trees.read(tmp_path / "in")
    assert client.pull_tree(root, out, delete=True).removed == 1
    assert trees.read(out) == trees.read(tmp_path / "in")


def test_a_pull_knows_unchanged_files_without_reading_them(
    client: Client, tmp_path: Path, at_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    trees.make(tmp_path / "in")
    root = client.push_tree(tmp_path / "in").root
    cache, out = tmp_path / "cache", tmp_path / "out"
    client.pull_tree(root, out, cache=cache)
    client.pull_tree(root, out, cache=cache)
    monkeypatch.setattr("cas.client.pull.hash_all", None)
    pulled = client.pull_tree(root, out, cache=cache)
    assert pulled.written == 0


def test_what_is_in_the_way_is_replaced_but_no_full_directory(
    client: Client, tmp_path: Path
) -> None:
    trees.make(tmp_path / "in")
    root = client.push_tree(tmp_path / "in").root
    out = tmp_path / "out"
    out.mkdir()
    (out / "a").write_text("a file where a directory belongs")
    (out / "program").mkdir()
    (out / "up").write_text("a file where a symlink belongs")
    (out / "secret").symlink_to(tmp_path / "victim")
    client.pull_tree(root, out)
    assert trees.read(out) == trees.read(tmp_path / "in")
    assert not (tmp_path / "victim").exists()

    (out / "program").unlink()
    (out / "program").mkdir()
    (out / "program" / "mine").write_text("precious")
    with pytest.raises(BadTree, match="program is a directory with something in it"):
        client.pull_tree(root, out)
    assert (out / "program" / "mine").read_text() == "precious"
    client.pull_tree(root, out, delete=True)
    assert trees.read(out) == trees.read(tmp_path / "in")


def test_a_symlink_to_elsewhere_is_not_written_through(client: Client, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    trees.make(tmp_path / "in")
    root = client.push_tree(tmp_path / "in").root
    out = tmp_path / "out"
    out.mkdir()
    (out / "a").symlink_to(elsewhere)
    client.pull_tree(root, out)
    assert list(elsewhere.iterdir()) == []
    assert trees.read(out) == trees.read(tmp_path / "in")


def hostile(client: Client, directory: pb.Directory) -> Digest:
    return client.put(directory.SerializeToString())


@pytest.mark.parametrize("name", ["..", "../x", "/tmp/x", "a/../../x", "."])
def test_a_hostile_tree_writes_nothing_outside(client: Client, tmp_path: Path, name: str) -> None:
    content = client.put(b"evil")
    directory = pb.Directory()
    node = directory.files.add(name=name)
    node.digest.hash, node.digest.size_bytes = content.hex, content.size
    root = hostile(client, directory)
    out = tmp_path / "deep" / "out"
    with pytest.raises(BadTree):
        client.pull_tree(root, out)
    assert [str(path) for path in tmp_path.rglob("x")] == []


def test_a_tree_with_a_symlink_and_a_directory_of_one_name_is_refused(
    client: Client, tmp_path: Path
) -> None:
    inner = tree.encode(Listing((FileNode("x", client.put(b"evil")),)))
    directory = pb.Directory()
    directory.symlinks.add(name="a", target=str(tmp_path))
    node = directory.directories.add(name="a")
    node.digest.hash, node.digest.size_bytes = client.put(inner).hex, len(inner)
    with pytest.raises(BadTree, match="two entries"):
        client.pull_tree(hostile(client, directory), tmp_path / "out")
    assert not (tmp_path / "x").exists()


def test_what_is_no_tree_is_said_so(client: Client, tmp_path: Path) -> None:
    with pytest.raises(BadTree, match="is not a directory"):
        client.pull_tree(client.put(b"\xff just bytes"), tmp_path / "out")
    absent = digests.of(os.urandom(20))
    with pytest.raises(NotFound, match=str(absent)):
        client.pull_tree(absent, tmp_path / "out")
    missing_file = tree.encode(Listing((FileNode("x", absent),)))
    with pytest.raises(NotFound, match=str(absent)):
        client.pull_tree(client.put(missing_file), tmp_path / "out")


def test_files_are_whole_or_absent_when_a_pull_fails(client: Client, tmp_path: Path) -> None:
    absent = of_bytes(os.urandom(600_000)).digest
    root = tree.encode(Listing((FileNode("gone", absent), FileNode("there", client.put(b"x")))))
    out = tmp_path / "out"
    with pytest.raises(NotFound):
        client.pull_tree(client.put(root), out)
    assert set(os.listdir(out)) <= {"there"}


def test_directories_that_forbid_writing_are_filled_and_kept_so(
    client: Client, tmp_path: Path
) -> None:
    source = tmp_path / "in"
    (source / "closed").mkdir(parents=True)
    (source / "closed" / "file").write_text("x")
    (source / "closed").chmod(0o555)
    root = client.push_tree(source).root
    for _ in range(2):
        client.pull_tree(root, tmp_path / "out")
        assert stat.S_IMODE((tmp_path / "out" / "closed").stat().st_mode) == 0o555
        assert (tmp_path / "out" / "closed" / "file").read_text() == "x"
        (tmp_path / "out" / "closed").chmod(0o755)
        (tmp_path / "out" / "closed" / "file").write_text("y")
        (tmp_path / "out" / "closed").chmod(0o555)
    for path in (source, tmp_path / "out"):
        (path / "closed").chmod(0o755)


@pytest.mark.parametrize("links", ["hard", "reflink"])
def test_blobs_are_linked_from_a_local_cache(client: Client, tmp_path: Path, links: Links) -> None:
    trees.make(tmp_path / "in")
    root = client.push_tree(tmp_path / "in").root
    kept = BlobCache(tmp_path / "blobs", links)
    first = client.pull_tree(root, tmp_path / "one", links=kept)
    second = client.pull_tree(root, tmp_path / "two", links=kept)
    assert second.got_bytes < first.got_bytes
    assert trees.read(tmp_path / "one") == trees.read(tmp_path / "two")
    assert trees.read(tmp_path / "two") == trees.read(tmp_path / "in")
    same = (tmp_path / "one" / "large").samefile(tmp_path / "two" / "large")
    assert same == (links == "hard")
    if links == "hard":
        # Someone writes through a link: the cache must not hand that on.
        (tmp_path / "one" / "large").write_bytes(b"spoilt")
        (tmp_path / "one" / "secret").chmod(0o644)
    client.pull_tree(root, tmp_path / "three", links=kept)
    assert trees.read(tmp_path / "three") == trees.read(tmp_path / "in")
    kept.trim(0)
    assert [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()] == []


FILES = st.dictionaries(
    st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map("/".join),
    st.tuples(st.sampled_from(["file", "link", "folder"]), st.sampled_from([b"1", b"2", b"33"])),
    max_size=6,
)


def lay(root: Path, content: dict[str, tuple[str, bytes]]) -> None:
    root.mkdir()
    for name, (kind, data) in content.items():
        path = root / name
        if any(part.is_symlink() or part.is_file() for part in (path, *path.parents)):
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            continue
        if kind == "file":
            path.write_bytes(data)
        elif kind == "link":
            path.symlink_to(data.decode())
        else:
            path.mkdir()


@settings(max_examples=30)
@given(FILES, FILES)
def test_any_directory_becomes_any_tree(
    server: Server,
    tmp_path_factory: pytest.TempPathFactory,
    before: dict[str, tuple[str, bytes]],
    after: dict[str, tuple[str, bytes]],
) -> None:
    base = tmp_path_factory.mktemp("any")
    lay(base / "in", after)
    lay(base / "out", before)
    with Client(f"grpc://{server.address}") as client:
        root = client.push_tree(base / "in").root
        client.pull_tree(root, base / "out", delete=True)
        assert trees.read(base / "out") == trees.read(base / "in")
        again = client.pull_tree(root, base / "out", delete=True)
        assert (again.written, again.removed) == (0, 0)


def test_a_plain_tree_has_the_digest_that_other_clients_give_it(tmp_path: Path) -> None:
    file = digests.of(b"x")
    inner = Listing((FileNode("file", file),))
    raw = tree.encode(inner)
    outer = Listing((), (FolderNode("dir", digests.of(raw)),), (LinkNode("l", "dir"),))
    by_hand = pb.Directory(
        directories=[
            pb.DirectoryNode(
                name="dir",
                digest=pb.Digest(hash=digests.of(raw).hex, size_bytes=len(raw)),
            )
        ],
        symlinks=[pb.SymlinkNode(name="l", target="dir")],
    )
    assert tree.encode(outer) == by_hand.SerializeToString(deterministic=True)


def test_a_failure_is_raised_as_it_is(tmp_path: Path) -> None:
    """Not as one of a group, which nobody who catches it would know."""
    trees.make(tmp_path / "in")
    once = Retry(attempts=1, first=0.01)
    with Client("grpc://127.0.0.1:1", retry=once) as client, pytest.raises(Unavailable):
        client.push_tree(tmp_path / "in")
