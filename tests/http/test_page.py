"""The page's own answers over HTTP: what is served, to whom, and what it says."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cas import digest as digests
from cas.errors import InvalidArgument, NotFound
from cas.http import look, page
from cas.http.paths import parse
from cas.metrics import families
from cas.metrics.history import PAGE
from cas.pb import remote_execution_pb2 as pb
from tests.http.paged import Watched, credentials, watching
from tests.http.serving import PATIENCE, sha, some_bytes
from tests.metrics.reading import value

PAGES = ("/", "/-/now", "/-/past", "/-/look", "/-/raw", "/-/page.css", "/-/page.js",
         "/-/dom.js", "/-/charts.js", "/-/inside.js", "/-/icon.svg")  # fmt: skip


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    with watching(tmp_path_factory.mktemp("page")) as running:
        yield running


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    with watching(tmp_path_factory.mktemp("locked"), locked=True) as running:
        yield running


@pytest.mark.parametrize("path", PAGES)
def test_no_protocol_has_the_pages_paths(path: str) -> None:
    """So that no instance can be meant by one, whatever it is called."""
    with pytest.raises(NotFound):
        parse(path)
    with pytest.raises(NotFound):
        parse(f"/-{path}")


@pytest.mark.parametrize("kind", ["cas", "ac"])
def test_an_instance_may_be_called_as_the_pages_begin(watched: Watched, kind: str) -> None:
    assert parse(f"/-/{kind}/{'a' * 64}").instance == "-"
    data = b"of the instance -"
    watched.put(data, "-")
    assert watched.served.get(f"/-/cas/{sha(data)}").body == data


def test_the_page_names_its_own_files_and_no_other(watched: Watched) -> None:
    reply = watched.served.get("/")
    assert reply.status == 200
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    assert reply.headers["cache-control"] == "no-store"
    named = re.findall(r'(?:src|href)="([^"#]+)"', reply.text)
    assert {name.partition("?")[0] for name in named} == {
        "/-/icon.svg", "/-/page.css", "/-/page.js", "/status", "/metrics", "/healthz", "/readyz",
    }  # fmt: skip
    assert "{" not in reply.text, "a placeholder was left"
    for name in named:
        if name.startswith("/-/"):
            answer = watched.served.get(name)
            assert answer.status == 200
            assert "immutable" in answer.headers["cache-control"]
            assert answer.headers["x-content-type-options"] == "nosniff"
            for other in re.findall(r'from "([^"]+)"', answer.text):
                assert watched.served.get(other).status == 200
    whole = reply.text + "".join((page.STATIC / name).read_text() for name in page._FILES)
    outside = set(re.findall(r"https?://[^\s\"'<>]+", whole)) - {
        "http://www.w3.org/2000/svg",  # a name, nothing is fetched
    }
    assert outside == set()
    assert "innerHTML" not in whole
    assert not re.search(r"<[^>]* (style|on\w+)=", reply.text)


def test_the_policy_lets_in_nothing_else(watched: Watched) -> None:
    replies = [watched.served.get("/") for _ in range(2)]
    policies = []
    for reply in replies:
        policy = dict(
            part.strip().split(" ", 1)
            for part in reply.headers["content-security-policy"].split(";")
        )
        assert policy["default-src"] == "'none'"
        (nonce,) = re.fullmatch(r"'nonce-([\w-]{20,})'", policy["script-src"]).groups()  # type: ignore[union-attr]
        assert policy["style-src"] == f"'nonce-{nonce}'"
        assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
        assert policy["trusted-types"] == "'none'"
        assert reply.text.count(f'nonce="{nonce}"') == 2
        policies.append(nonce)
        assert reply.headers["referrer-policy"] == "no-referrer"
    assert policies[0] != policies[1]


@pytest.mark.parametrize("path", PAGES)
def test_they_are_only_read(watched: Watched, path: str) -> None:
    assert watched.served.put(path, b"x").status == 405
    reply = watched.served.ask("HEAD", path + ("?digest=" + "0" * 64 if path > "/-/l" else ""))
    assert reply.body == b""


def test_what_there_is_now(watched: Watched) -> None:
    watched.put(b"a blob, " * 200, "builds")
    told = watched.now(lambda told: told["totals"]["writes"])
    assert told["ready"] is True
    assert [process[0] for process in told["processes"]] == ["supervisor", "http"]
    assert told["roles"] == {"grpc": [1, 1]}
    assert set(told["windows"]) == {"hour", "day"}
    past = watched.json("/-/past")
    assert [past[name]["span"] for name in ("hour", "day")] == [3600, 86400]
    assert len(past["hour"]["at"]) == len(past["hour"]["requests"]) >= 1


def test_those_who_look_at_once_are_told_the_same(watched: Watched) -> None:
    deadline = time.monotonic() + PATIENCE
    while watched.json("/-/now")["at"] != watched.json("/-/now")["at"]:
        assert time.monotonic() < deadline


def test_who_looks_is_counted_apart(watched: Watched) -> None:
    deadline = time.monotonic() + PATIENCE
    before = value(watched.metrics, families.REQUESTS, "http", "GET", "200", "")
    while not value(watched.metrics, families.REQUESTS, "http", PAGE, "200", ""):
        assert watched.served.get("/-/now").status == 200
        assert time.monotonic() < deadline
    assert value(watched.metrics, families.REQUESTS, "http", "GET", "200", "") == before


def test_tools_are_named_by_their_user_agent(watched: Watched) -> None:
    data = b"of ccache"
    watched.served.ask("PUT", f"/cas/{sha(data)}", data, User_Agent="ccache/4.10 (x)")
    watched.served.ask("GET", "/-/now", None, User_Agent="Mozilla/5.0")
    deadline = time.monotonic() + PATIENCE
    while not value(watched.metrics, families.TOOL_REQUESTS, "ccache 4.10"):
        assert time.monotonic() < deadline
    assert not value(watched.metrics, families.TOOL_REQUESTS, "Mozilla 5.0")


def test_errors_are_noted_without_secrets(watched: Watched) -> None:
    reply = watched.served.get(
        "/v8/artifacts/abc?" + "a=1&" * 40 + "token=hunter2hunter2", Authorization="Bearer hunter2"
    )
    assert reply.status == 400
    wrong = b"other bytes"
    assert watched.served.put(f"/cas/{sha(b'some bytes')}", wrong).status == 400
    assert watched.served.get(f"/cas/{sha(b'absent')}").status == 404
    told = watched.now(lambda told: {"PUT", "GET"} <= {note[3] for note in told["notes"]})
    notes = told["notes"]
    assert "hunter2" not in json.dumps(notes)
    assert {code for *_, code, _, _ in notes} == {"400"}, "a miss is no error"
    (note,) = [note for note in notes if note[3] == "PUT"]
    assert sha(wrong) in note[-1]


# --- looking inside


def test_a_blob_is_found_by_whatever_has_its_digest_in_it(watched: Watched) -> None:
    data = b"what is looked for\n"
    digest = watched.put(data)
    for text in (
        digest.hash,
        f"  {digest.hash.upper()} ",
        f"{digest.hash}/{len(data)}",
        f"sha256/{digest.hash}/{len(data)}",
        f"main/blobs/{digest.hash}/{len(data)}",
        f"uploads/0c6b2cd5/blobs/{digest.hash}/{len(data)}/name",
        f"blob {digest.hash}:{len(data)} is not here",
    ):
        blob = watched.json("/-/look", digest=text)["blob"]
        assert blob["digest"] == f"{digest.hash}/{len(data)}"
        assert blob["text"] == data.decode()
    assert watched.json("/-/look", digest=f"{digest.hash}/{len(data) + 1}")["blob"] is None
    reply = watched.served.get(f"/-/raw?digest={digest.hash}")
    assert reply.body == data
    assert reply.headers["content-type"] == "application/octet-stream"
    assert reply.headers["content-disposition"] == "attachment"
    assert "sandbox" in reply.headers["content-security-policy"]


@pytest.mark.parametrize(
    "query",
    [
        "digest=",
        "digest=abc",
        "digest=" + "a" * 5000,
        "digest=" + "0" * 64 + "&as=html",
        "digest=" + "0" * 64 + "&instance=a//b",
        "digest=" + "0" * 64 + "&other=1",
        "digest=%ff" + "0" * 64,
        "&".join(["digest=0"] * 40),
    ],
)
def test_what_is_no_digest_is_refused(watched: Watched, query: str) -> None:
    assert watched.served.get(f"/-/look?{query}").status == 400


def test_what_is_absent_is_not_there(watched: Watched) -> None:
    told = watched.json("/-/look", digest=sha(b"absent"))
    assert (told["blob"], told["results"]) == (None, [])
    assert watched.served.get(f"/-/raw?digest={sha(b'absent')}").status == 404


def test_directories_trees_and_results_lead_to_each_other(watched: Watched) -> None:
    content = watched.put(b"<script>alert(1)</script>")
    absent = pb.Digest(hash=sha(b"never sent"), size_bytes=10)
    child = pb.Directory(files=[pb.FileNode(name="<b>&amp;", digest=content, is_executable=True)])
    raw = child.SerializeToString()
    root = pb.Directory(
        files=[pb.FileNode(name="gone", digest=absent)],
        directories=[pb.DirectoryNode(name="sub", digest=watched.put(raw))],
    )
    root_digest = watched.put(root.SerializeToString())
    listed = watched.json("/-/look", digest=root_digest.hash)["blob"]
    assert listed["kind"] == "directory"
    assert [entry.get("absent", False) for entry in listed["entries"]] == [False, True]
    inner = watched.json("/-/look", digest=listed["entries"][0]["digest"])["blob"]
    assert inner["entries"][0]["name"] == "<b>&amp;"

    tree = watched.put(pb.Tree(root=root, children=[child]).SerializeToString())
    told = watched.json("/-/look", digest=tree.hash, path="sub")["blob"]
    assert (told["kind"], told["entries"][0]["executable"]) == ("tree", True)
    assert watched.served.get(f"/-/look?digest={tree.hash}&path=other").status == 400

    result = pb.ActionResult(
        exit_code=1,
        output_files=[pb.OutputFile(path="out/a", digest=content)],
        stdout_raw=b"said",
    )
    key = watched.put_result(b"an action", result, "builds/linux")
    assert watched.json("/-/look", digest=key)["results"] == [], "until its instance is known"
    told = watched.json("/-/look", digest=key, instance="builds/linux")
    (found,) = told["results"]
    assert (found["exit_code"], found["missing"], found["references"]) == (1, 0, 1)
    assert found["stdout"]["text"] == "said"
    assert found["action"] == f"sha256/{key}"
    assert "author" not in found
    assert watched.json("/-/look", digest=key, instance="")["results"] == []


def test_looking_is_no_hit_and_no_miss(watched: Watched) -> None:
    key = watched.put_result(b"not counted", pb.ActionResult(exit_code=2))
    counted = [
        value(watched.metrics, families.ACTION_LOOKUPS, result) for result in ("hit", "miss")
    ]
    assert watched.json("/-/look", digest=key)["results"]
    assert watched.json("/-/look", digest=sha(b"absent"))["results"] == []
    assert counted == [
        value(watched.metrics, families.ACTION_LOOKUPS, result) for result in ("hit", "miss")
    ]


def test_a_large_blob_shows_its_beginning(watched: Watched) -> None:
    data = some_bytes(look.WHOLE + 1)
    digest = watched.put(data)
    told = watched.json("/-/look", digest=digest.hash)["blob"]
    assert (told["kind"], told["kinds"], told["cut"]) == ("bytes", ["bytes"], True)
    assert bytes.fromhex(told["hex"][0]) == data[:16]
    part = watched.served.get(f"/-/raw?digest={digest.hash}", Range="bytes=5-9")
    assert (part.status, part.body) == (206, data[5:10])


@given(st.text(max_size=300))
def test_any_text_is_a_digest_or_refused(text: str) -> None:
    try:
        names = look.named(text)
    except InvalidArgument:
        return
    assert names
    assert all(len(name.hash) == name.function.length for name in names)


@given(st.binary(min_size=32, max_size=32), st.integers(0, digests.MAX_SIZE))
def test_digests_are_read_back(raw: bytes, size: int) -> None:
    digest = digests.make(digests.SHA256, raw, size)
    assert (digests.SHA256, raw, size) in look.named(f"blobs/{digest}")


# --- who may look


@pytest.mark.parametrize("path", PAGES)
def test_nothing_is_shown_without_credentials(locked: Watched, path: str) -> None:
    reply = locked.served.get(path)
    assert reply.status == 401
    assert reply.headers["www-authenticate"] == 'Basic realm="cas"'
    assert "<html" not in reply.text


def test_a_reader_of_one_instance_sees_that_instances_errors(locked: Watched) -> None:
    for instance in ("shared", "secret"):
        path = f"/{instance}/cas/{sha(b'a')}"
        wrong = f"from {instance}".encode()
        reply = locked.served.ask("PUT", path, wrong, **credentials("alice"))
        assert reply.status == 400
    told = locked.now(
        lambda told: {"shared", "secret"} <= {note[5] for note in told["notes"]}, "alice"
    )
    assert all(sha(b"a") in note[-1] for note in told["notes"] if note[5])
    assert {note[5] for note in locked.json("/-/now", "bob")["notes"]} == {"shared"}


def test_action_results_are_for_who_may_read_their_instance(locked: Watched) -> None:
    for instance in ("shared", "secret"):
        result = pb.ActionResult(stdout_raw=instance.encode()).SerializeToString()
        path = f"/{instance}/ac/{sha(b'an action')}"
        assert locked.served.ask("PUT", path, result, **credentials("alice")).status == 200
    locked.now(lambda told: len(told["windows"]["day"]["instances"]) > 1, "alice")
    key = sha(b"an action")
    everything = locked.json("/-/look", "alice", digest=key)["results"]
    assert [result["instance"] for result in everything] == ["secret", "shared"]
    (only,) = locked.json("/-/look", "bob", digest=key)["results"]
    assert only["instance"] == "shared"
    refused = locked.served.get(f"/-/look?digest={key}&instance=secret", **credentials("bob"))
    assert refused.status == 403


def test_who_reads_nowhere_is_refused(locked: Watched) -> None:
    wrong = base64.b64encode(b"alice:rabbit-hole").decode()
    assert locked.served.get("/", Authorization=f"Basic {wrong}").status == 401
