"""Saves, and the lists by which they are found."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cas.client import lists, saves
from cas.client.client import AsyncClient
from cas.client.errors import BadTree
from cas.client.lists import Entry, boundaries, merge
from cas.client.source import of_bytes
from cas.errors import InvalidArgument
from cas.pb import remote_execution_pb2 as pb
from tests.client import trees
from tests.client.serving import HttpCache, serving
from tests.conformance.serving import Server

texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=40)
entries = st.lists(
    st.builds(Entry, st.floats(0, 2e9), st.text("ab-", min_size=1, max_size=3)), max_size=20
)


@asynccontextmanager
async def remote(kind: str, server: Server) -> AsyncIterator[AsyncClient]:
    if kind == "grpc":
        # Another instance for each test: keys are names under one.
        async with AsyncClient(f"grpc://{server.address}/{uuid.uuid4()}") as client:
            yield client
    else:
        async with (
            serving(HttpCache()) as address,
            AsyncClient(f"http://{address}") as client,
        ):
            yield client


both = pytest.mark.parametrize("kind", ["grpc", "http"])


@given(texts, st.integers(0, 40))
def test_who_looks_for_a_prefix_reads_a_list_that_its_saves_are_on(key: str, cut: int) -> None:
    prefix = key[:cut]
    read = boundaries(prefix)[-1]
    assert read in boundaries(key)
    assert prefix.startswith(read)
    assert boundaries(key)[0] == ""


@given(entries, entries)
def test_lists_merge_the_same_either_way(some: list[Entry], others: list[Entry]) -> None:
    merged = merge(some, others)
    assert merged == merge(others, some) == merge(merged, some)
    assert len({entry.key for entry in merged}) == len(merged)
    assert [entry.at for entry in merged] == sorted((e.at for e in merged), reverse=True)
    for entry in merged:
        assert entry.at == max(one.at for one in (*some, *others) if one.key == entry.key)


def test_a_full_list_keeps_the_newest() -> None:
    many = [Entry(float(n), f"k{n}") for n in range(lists.LISTED + 10)]
    merged = merge(many[::2], many[1::2])
    assert merged[0] == many[-1]
    assert len(merged) == lists.LISTED
    assert many[9] not in merged


@both
def test_what_was_saved_comes_back(kind: str, server: Server, tmp_path: Path) -> None:
    work, home = tmp_path / "work", tmp_path / "home"
    trees.make(work)
    trees.make(home)

    async def test() -> None:
        async with remote(kind, server) as client:
            done = await saves.save(
                client,
                "pip-1",
                ["a", "program", "dangling", str(home / "b"), "absent"],
                base=work,
                home=home,
            )
            assert not done.existed
            assert done.listed
            assert done.missing == ("absent",)
            assert done.files == 6
            again = await saves.save(client, "pip-1", ["a"], base=work, home=home)
            assert again.existed

            new, other = tmp_path / "new", tmp_path / "other"
            back = await saves.restore(client, "pip-1", base=new, home=other)
            assert back is not None
            assert back.exact
            assert trees.read(new / "a") == trees.read(work / "a")
            assert trees.read(other / "b") == trees.read(home / "b")
            assert (new / "program").stat().st_mode & 0o777 == 0o755
            assert (new / "dangling").readlink() == Path("nowhere/at all")
            assert sorted(path.name for path in new.iterdir()) == ["a", "dangling", "program"]

            into = tmp_path / "into"
            back = await saves.restore(client, "pip-1", base=new, home=other, into=into)
            assert sorted(os.listdir(into)) == ["a", "b", "dangling", "program"]

    asyncio.run(test())


@both
def test_a_fallback_is_the_newest_that_begins_so(kind: str, server: Server, tmp_path: Path) -> None:
    async def test() -> None:
        async with remote(kind, server) as client:

            async def save(key: str) -> None:
                (tmp_path / "file").write_text(key)
                await saves.save(client, key, ["file"], base=tmp_path, home=tmp_path)

            async def restored(key: str, *fallbacks: str) -> str | None:
                done = await saves.restore(
                    client, key, fallbacks, base=tmp_path / "out", home=tmp_path
                )
                if done is None:
                    return None
                assert (tmp_path / "out" / "file").read_text() == done.key
                assert done.exact == (done.key == key)
                return done.key

            for key in ("pip-linux-a1", "pip-linux-b2", "pip-mac-c3", "npm-d4"):
                await save(key)
            assert await restored("pip-linux-a1", "pip-linux-") == "pip-linux-a1"
            assert await restored("pip-linux-zz", "pip-linux-") == "pip-linux-b2"
            assert await restored("pip-linux-zz", "pip-linux-a") == "pip-linux-a1"
            assert await restored("pip-linux-zz", "pip-l") == "pip-linux-b2"
            assert await restored("pip-zz", "pip-freebsd-", "pip-") == "pip-mac-c3"
            assert await restored("x", "") == "npm-d4"
            assert await restored("pip-linux-zz", "yarn-") is None
            assert await restored("pip-linux") is None

    asyncio.run(test())


def test_a_save_that_lost_something_is_passed_over(tmp_path: Path) -> None:
    async def test() -> None:
        cache = HttpCache()
        async with serving(cache) as address, AsyncClient(f"http://{address}") as client:
            for key in ("k-1", "k-2"):
                (tmp_path / "d").mkdir(exist_ok=True)
                (tmp_path / "d" / "file").write_text(key)
                await saves.save(client, key, ["d"], base=tmp_path, home=tmp_path)
            lost = of_bytes(b"k-2").digest
            del cache.blobs[f"/cas/{lost.hex}"]
            done = await saves.restore(client, "k-3", ["k-"], base=tmp_path / "out", home=tmp_path)
            assert done is not None
            assert done.key == "k-1"

    asyncio.run(test())


def test_saves_at_the_same_time_are_all_listed(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")

    async def test() -> None:
        async with remote("grpc", server) as client:
            done = await asyncio.gather(
                *(
                    saves.save(client, f"job-{n}", ["file"], base=tmp_path, home=tmp_path)
                    for n in range(8)
                )
            )
            assert all(one.listed for one in done)
            found = {entry.key for entry in await lists.find(client, "job-")}
            lost = {f"job-{n}" for n in range(8)} - found
            # A writer may be overwritten after it has looked; whoever saves that key again
            # repairs it.
            for key in lost:
                await saves.save(client, key, ["file"], base=tmp_path, home=tmp_path)
            assert len(await lists.find(client, "job-")) == 8

    asyncio.run(test())


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("a/b", "a/b"),
        ("./a/../c", "c"),
        (".", ""),
        ("/home/me/.cache/pip", "~/.cache/pip"),
        ("/home/me/work/x", "x"),
    ],
)
def test_places_are_relative_to_where_they_come_back_to(path: str, place: str) -> None:
    assert saves.place_of(path, Path("/home/me/work"), Path("/home/me")) == place


def test_a_directory_named_like_a_tilde_is_not_taken_for_the_home() -> None:
    with pytest.raises(InvalidArgument):
        saves.place_of("~/x", Path("/work"), Path("/home/me"))


@pytest.mark.parametrize("path", ["/etc", "/home", "/home/me", "../.."])
def test_what_no_other_machine_could_put_back_is_refused(path: str) -> None:
    with pytest.raises(InvalidArgument, match="is neither below"):
        saves.place_of(path, Path("/home/me/work"), Path("/home/me"))


@pytest.mark.parametrize("place", ["../x", "a/../../x", "/etc/x", "a//b", "~/../x", "link/x"])
def test_a_hostile_save_writes_nothing_outside(place: str, server: Server, tmp_path: Path) -> None:
    base, outside = tmp_path / "deep" / "base", tmp_path / "outside"
    base.mkdir(parents=True)
    outside.mkdir()
    (base / "link").symlink_to(outside)

    async def test() -> None:
        async with remote("grpc", server) as client:
            digest = await client.put(b"evil")
            result = pb.ActionResult()
            file = result.output_files.add(path=place)
            file.digest.hash, file.digest.size_bytes = digest.hex, digest.size
            lists.set_note(result, {"key": "evil", "at": 1.0})
            await client.put_action(lists.action_of("save", "evil"), result)
            with pytest.raises(BadTree):
                await saves.restore(client, "evil", base=base, home=base)

    asyncio.run(test())
    assert os.listdir(outside) == []
    assert os.listdir(base) == ["link"]


def test_key_files_are_hashed_by_name_and_content(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.lock").write_text("1")
    (tmp_path / "sub" / "b.lock").write_text("2")
    first = saves.key_of_files(["*.lock"], tmp_path)
    assert len(first) == 32
    both = saves.key_of_files(["**/*.lock"], tmp_path)
    assert saves.key_of_files(["*.lock", "sub/*.lock", "a.lock"], tmp_path) == both != first
    (tmp_path / "a.lock").write_text("3")
    assert saves.key_of_files(["*.lock"], tmp_path) != first
    with pytest.raises(InvalidArgument, match="no file matches 'nothing'"):
        saves.key_of_files(["nothing"], tmp_path)


@pytest.mark.parametrize("key", ["", "a\nb", "x" * 600])
def test_a_key_is_a_printable_name(key: str) -> None:
    with pytest.raises(InvalidArgument, match="cannot be a key"):
        saves.check_key(key)
