"""Action results, and values under keys: ccache, Gradle, sccache, Turborepo, Nx."""

from __future__ import annotations

import json
import threading
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

import pytest
import zstandard
from google.protobuf import json_format

from cas import digest as digests
from cas.digest import Digest, Function
from cas.errors import NoRoomYet, NoSpace
from cas.http.context import HttpLimits
from cas.pb import remote_execution_pb2 as pb
from cas.store.interface import Buffer
from cas.store.memory import MemorySpool, MemoryStore
from cas.store.pending import Pending, failed
from tests.http.serving import MAX_MESSAGE, Served, local_store, serving, sha, some_bytes

SIZES = [0, 10, 64 << 10, (64 << 10) + 1, 400_000, 3_000_000]
JSON = "application/json"


def result_of(*blobs: bytes) -> pb.ActionResult:
    result = pb.ActionResult(exit_code=0, stdout_raw=b"said")
    for number, data in enumerate(blobs):
        digest = pb.Digest(hash=sha(data), size_bytes=len(data))
        result.output_files.add(path=f"out/{number}", digest=digest, is_executable=True)
    return result


class TestActionResults:
    def test_one_comes_back_while_what_it_names_is_here(self, served: Served) -> None:
        here, later = some_bytes(100, 20), some_bytes(100_000, 21)
        raw = result_of(here, later).SerializeToString()
        path = f"/x/ac/{sha(raw)}"
        served.put(f"/cas/{sha(here)}", here)
        assert served.put(path, raw).status == 200
        assert served.get(path).status == 404
        served.put(f"/cas/{sha(later)}", later)
        assert served.get(path).body == raw
        assert served.ask("HEAD", path).headers["content-length"] == str(len(raw))
        assert served.get(path.removeprefix("/x")).status == 404

    def test_as_json(self, served: Served) -> None:
        data = some_bytes(100, 22)
        served.put(f"/cas/{sha(data)}", data)
        result = result_of(data)
        text = json_format.MessageToJson(result).encode()
        path = f"/ac/{sha(text)}"
        put = served.put(path, text, Content_Type="application/json; charset=utf-8")
        assert put.status == 200
        got = served.get(path, Accept="text/plain, application/json")
        assert got.headers["content-type"] == JSON
        assert json_format.Parse(got.body, pb.ActionResult()) == result
        assert pb.ActionResult.FromString(served.get(path, Accept="*/*").body) == result

    @pytest.mark.parametrize(
        "body", [b"", b"[]", b"{", b'{"exitCode": "x"}', b"\xff", b'{"outputFiles": [{}]}',
                 b'{"a":' * 5000 + b"1" + b"}" * 5000],
    )  # fmt: skip
    def test_what_is_no_json_of_one(self, served: Served, body: bytes) -> None:
        refused = served.put(f"/ac/{sha(b'json')}", body, Content_Type=JSON)
        assert refused.status == 400
        assert "ActionResult" in refused.text
        assert served.get(f"/ac/{sha(b'json')}").status == 404

    @pytest.mark.parametrize(
        "opaque",
        [b"\xcc\xac" + some_bytes(400), some_bytes(130_000), some_bytes(MAX_MESSAGE + 5),
         b"\x12\x02ab", pb.ActionResult(output_files=[pb.OutputFile(path="x")]).SerializeToString(),
         b"\xf8\x7f\x01"],
        ids=["small", "larger", "large", "cut short", "no digest", "unknown field"],
    )  # fmt: skip
    def test_what_is_none_is_kept_apart(self, served: Served, opaque: bytes) -> None:
        path = f"/i/ac/{sha(opaque)}"
        assert served.put(path, opaque, User_Agent="ccache/4.7.5").status == 200
        assert served.get(path).body == opaque
        assert served.ask("HEAD", path).headers["content-length"] == str(len(opaque))
        # To Bazel, in JSON, in another instance, and to the store it is no action result.
        assert served.get(path, User_Agent="bazel/7.1.0").status == 404
        assert served.get(path.removeprefix("/i")).status == 404
        key = sha(b"of bazel" + opaque)
        refused = served.put(f"/ac/{key}", opaque, User_Agent="bazel/7.1.0")
        assert refused.status in (400, 413)
        assert served.get(f"/ac/{key}").status == 404

    def test_one_is_never_replaced_by_what_is_none(self, served: Served) -> None:
        path = f"/ac/{sha(b'both')}"
        raw = pb.ActionResult(exit_code=7).SerializeToString()
        assert served.put(path, b"\xcc\xac opaque").status == 200
        assert served.put(path, raw).status == 200
        assert served.put(path, b"\xcc\xac opaque").status == 409
        assert served.get(path).body == raw

    def test_absent_references_may_be_refused(self) -> None:
        limits = HttpLimits(require_references=True)
        with serving(MemoryStore(), limits=limits) as own:
            data = some_bytes(100, 23)
            raw = result_of(data).SerializeToString()
            refused = own.put(f"/ac/{sha(raw)}", raw)
            assert refused.status == 422
            assert sha(data) in refused.text
            own.put(f"/cas/{sha(data)}", data)
            assert own.put(f"/ac/{sha(raw)}", raw).status == 200


class TestValues:
    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("path", ["/cache/k", "/team/a/cache/ab/cd", "/webdav/p/x/y"])
    def test_one_comes_back(self, served: Served, path: str, size: int) -> None:
        for seed in (24, 25):
            path, data = f"{path}-{size}", some_bytes(size, seed)
            assert served.get(path).status == 404
            assert served.put(path, data).status in (200, 201)
            got = served.get(path)
            assert (got.status, got.body) == (200, data)
            assert got.headers["etag"] == f'"{sha(data)}"'
            assert served.ask("HEAD", path).headers["content-length"] == str(size)
        other = some_bytes(size + 1, 26)
        served.ask("PUT", path, iter([other]))
        assert served.get(path).body == other
        assert served.get(path, Range="bytes=0-0").body == other[:1]
        assert served.ask("DELETE", path).status == 204
        assert served.get(path).status == 404
        assert served.ask("DELETE", path).status == 404

    def test_namespaces_are_apart(self, served: Served) -> None:
        places = ["/cache/same", "/webdav/same", "/v1/cache/same", "/v8/artifacts/same",
                  "/v8/artifacts/same?slug=team", "/v8/artifacts/same?teamId=other",
                  "/a/cache/same", "/a/v1/cache/same", "/a/v8/artifacts/same"]  # fmt: skip
        for place in places:
            assert served.put(place, place.encode()).status < 300
        for place in places:
            assert served.get(place).body == place.encode()

    def test_a_small_value_is_no_blob(self, served: Served) -> None:
        data = some_bytes(300, 27)
        served.put("/cache/apart", data)
        assert served.get(f"/cas/{sha(data)}").status == 404


class TestWebDav:
    def test_what_is_there(self, served: Served) -> None:
        served.put("/webdav/p/file", b"12345")
        found = served.ask("PROPFIND", "/webdav/p/file", Depth="0")
        assert found.status == 207
        tree = ET.fromstring(found.body)
        assert [e.text for e in tree.iter("{DAV:}getcontentlength")] == ["5"]
        assert [e.text for e in tree.iter("{DAV:}href")] == ["/webdav/p/file"]
        assert not list(tree.iter("{DAV:}collection"))
        for path in ("/webdav/", "/webdav/p/", "/webdav/never/made/"):
            tree = ET.fromstring(served.ask("PROPFIND", path, Depth="0").body)
            assert list(tree.iter("{DAV:}collection"))
        assert served.ask("PROPFIND", "/webdav/p/absent", Depth="0").status == 404
        assert served.ask("MKCOL", "/webdav/new/").status == 201
        assert served.get("/webdav/p/").status == 404
        assert served.put("/webdav/p/", b"x").status == 400
        for depth in ({"Depth": "1"}, {"Depth": "infinity"}, {}):
            assert served.ask("PROPFIND", "/webdav/p/", None, **depth).status == 403

    def test_names_are_escaped(self, served: Served) -> None:
        served.put("/webdav/%3C&%22%3E", b"x")
        found = served.ask("PROPFIND", "/webdav/%3C&%22%3E", Depth="0")
        (href,) = [e.text for e in ET.fromstring(found.body).iter("{DAV:}href")]
        assert href == "/webdav/%3C%26%22%3E"

    def test_a_query_is_not_read_as_xml(self, served: Served) -> None:
        bomb = b'<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><x>&a;</x>'
        found = served.ask("PROPFIND", "/webdav/", bomb, Depth="0")
        assert found.status == 207
        assert b"root:" not in found.body
        assert served.ask("PROPFIND", "/webdav/", b" " * 70_000, Depth="0").status == 413
        many = iter([b" " * 50_000] * 4)
        assert served.ask("PROPFIND", "/webdav/", many, Depth="0").status == 413


class TestTurborepo:
    def test_artifacts_keep_their_fields(self, served: Served) -> None:
        path = "/v8/artifacts/0123456789abcdef?slug=kept"
        data = some_bytes(100_000, 28)
        put = served.put(path, data, x_artifact_duration="417", x_artifact_tag="c2ln")
        assert put.status == 202
        assert json.loads(put.body) == {"urls": []}
        got = served.get(path)
        assert got.body == data
        assert got.headers["x-artifact-duration"] == "417"
        assert got.headers["x-artifact-tag"] == "c2ln"
        assert served.ask("HEAD", path).headers["x-artifact-tag"] == "c2ln"
        served.put(path, data)
        assert "x-artifact-tag" not in served.get(path).headers

    def test_status_and_events(self, served: Served) -> None:
        status = served.get("/v8/artifacts/status?teamId=x")
        assert json.loads(status.body) == {"status": "enabled"}
        events = json.dumps([{"event": "HIT", "source": "REMOTE", "hash": "x"}]).encode()
        assert served.ask("POST", "/v8/artifacts/events", events, Content_Type=JSON).status == 200
        assert served.ask("POST", "/v8/artifacts/other", events).status == 404
        assert served.put("/v8/artifacts/status", b"x").status == 400

    def test_many_are_asked_about_at_once(self, served: Served) -> None:
        data = some_bytes(70_000, 29)
        served.put(
            "/v8/artifacts/q1?slug=q", data, x_artifact_duration="417", x_artifact_tag="c2ln"
        )
        served.put("/v8/artifacts/q2?slug=q", b"x", x_artifact_duration="soon")
        asked = json.dumps({"hashes": ["q1", "q2", "q3", ""]}).encode()
        found = served.ask("POST", "/v8/artifacts?slug=q", asked, Content_Type=JSON)
        assert found.status == 200
        assert json.loads(found.body) == {
            "q1": {"size": len(data), "taskDurationMs": 417, "tag": "c2ln"},
            "q2": {"size": 1, "taskDurationMs": 0},
            "q3": None,
            "": None,
        }
        elsewhere = served.ask("POST", "/v8/artifacts?slug=r", asked, Content_Type=JSON)
        assert set(json.loads(elsewhere.body).values()) == {None}

    @pytest.mark.parametrize(
        "body",
        [b"", b"{", b"[]", b'{"hashes": "x"}', b'{"hashes": [1]}', b'{"hashes": ["a\\u0000"]}',
         b"[" * 60_000, b'{"hashes": ["\\ud800"]}'],
        ids=range(8),
    )  # fmt: skip
    def test_what_is_no_query_is_refused(self, served: Served, body: bytes) -> None:
        refused = served.ask("POST", "/v8/artifacts", body, Content_Type=JSON)
        assert refused.status == 400
        assert served.ask("POST", "/v8/artifacts", b" " * 70_000).status == 413
        assert served.get("/v8/artifacts").status == 404
        assert served.put("/v8/artifacts", b"x").status == 400

    def test_fields_are_bounded(self, served: Served) -> None:
        refused = served.put("/v8/artifacts/t", b"x", x_artifact_tag="t" * 601)
        assert refused.status == 400
        assert "x-artifact-tag" in refused.text


class TestNx:
    def test_a_record_is_never_overridden(self, served: Served) -> None:
        assert served.get("/v1/cache/123").status == 404
        assert served.put("/v1/cache/123", b"first").status == 200
        assert served.put("/v1/cache/123", b"second").status == 409
        assert served.get("/v1/cache/123").body == b"first"


class Full(MemoryStore):
    """A store on a disk without room."""

    def put(self, blobs: object, /) -> list[Pending[None]]:
        return [failed(NoSpace("no room on disk")) for _ in blobs]  # type: ignore[attr-defined]

    def put_value(self, *value: object) -> Pending[None]:
        return failed(NoSpace("no room on disk"))


def test_a_full_store_is_507() -> None:
    with serving(Full()) as own:
        for path in (f"/cas/{sha(b'data')}", "/cache/k", f"/ac/{sha(b'x')}"):
            full = own.put(path, b"data")
            assert (full.status, full.text) == (507, "no room on disk\n")


class Tight(MemoryStore):
    """A store that has room for what was waited for, and for nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.granted = 0

    def room(self, size: int, /, *, waited: float = 0.0) -> Pending[None]:
        pending: Pending[None] = Pending()

        def grant() -> None:
            self.granted += size
            pending.resolve(None)

        threading.Timer(0.05, grant).start()
        return pending

    def put(self, blobs: Sequence[tuple[Digest, Buffer]], /) -> list[Pending[None]]:
        if sum(digest.size for digest, _ in blobs) > self.granted:
            return [failed(NoSpace("not waited for")) for _ in blobs]
        return super().put(blobs)

    def spool(self, function: Function, size: int | None, /) -> MemorySpool:
        if (size or 0) > self.granted:
            raise NoSpace("not waited for")
        return super().spool(function, size)


def test_what_needs_a_file_waits_for_room() -> None:
    result = pb.ActionResult()
    result.output_files.add(path="x", contents=some_bytes(100_000, 32)).digest.CopyFrom(
        pb.Digest(hash=sha(some_bytes(100_000, 32)), size_bytes=100_000)
    )
    for path, data in (
        (f"/cas/{sha(some_bytes(100_000, 30))}", some_bytes(100_000, 30)),
        (f"/cas/{sha(some_bytes(3_000_000, 31))}", some_bytes(3_000_000, 31)),
        (f"/ac/{sha(b'action')}", result.SerializeToString()),
    ):
        with serving(Tight()) as own:
            put = own.put(path, data)
            assert (put.status, put.text) == (200, "")


class Crowded(MemoryStore):
    """A store where others are quicker to take the room that there is, now and then."""

    def __init__(self) -> None:
        super().__init__()
        self.took = 0

    def others_were_quicker(self) -> bool:
        """Three times of four."""
        self.took += 1
        return self.took % 4 > 0

    def put(self, blobs: Sequence[tuple[Digest, Buffer]], /) -> list[Pending[None]]:
        return [
            failed(NoRoomYet("others were quicker", blob[0].size))
            if self.others_were_quicker()
            else super(Crowded, self).put([blob])[0]
            for blob in blobs
        ]

    def spool(self, function: Function, size: int | None, /) -> MemorySpool:
        super().spool(function, size).discard()
        return CrowdedSpool(self, function)


class CrowdedSpool(MemorySpool):
    def __init__(self, store: Crowded, function: Function) -> None:
        super().__init__(store, function)
        store._spools += 1
        self._crowd = store
        self._flushed = 0

    def flush(self) -> None:
        if self._crowd.others_were_quicker():
            raise NoRoomYet("others were quicker", self.size - self._flushed)
        self._flushed = self.size

    def finish(self, expected: bytes | None = None, /) -> tuple[Digest, Pending[None]]:
        self.flush()
        self.discard()
        digest = digests.of(self._data, self._function)
        assert expected is None or digest.key.startswith(expected)
        return digest, MemoryStore.put(self._crowd, [(digest, self._data)])[0]


def test_what_finds_no_room_after_all_waits_again() -> None:
    store = Crowded()
    outputs = [some_bytes(100_000 + number, 40 + number) for number in range(3)]
    result = pb.ActionResult()
    for data in outputs:
        result.output_files.add(path="x", contents=data).digest.CopyFrom(
            pb.Digest(hash=sha(data), size_bytes=len(data))
        )
    whole, long, packed = (some_bytes(size, size) for size in (100_000, 3_000_000, 3_000_001))
    with serving(store) as own:
        for path, body, headers in (
            (f"/cas/{sha(whole)}", whole, {}),
            (f"/cas/{sha(long)}", long, {}),
            (f"/cas/{sha(packed)}", zstandard.compress(packed), {"Content-Encoding": "zstd"}),
            (f"/ac/{sha(b'action')}", result.SerializeToString(), {}),
        ):
            put = own.put(path, body, **headers)
            assert (put.status, put.text) == (200, "")
        for data in (whole, long, packed, *outputs):
            assert own.get(f"/cas/{sha(data)}").body == data


def test_what_was_kept_survives_the_process(tmp_path: Path) -> None:
    large = some_bytes(200_000, 29)

    for round in range(2):
        with local_store(tmp_path / "store") as store, serving(store) as own:
            if not round:
                own.put("/cache/small", b"small")
                own.put("/cache/large", large)
            assert own.get("/cache/small").body == b"small"
            assert own.get("/cache/large").body == large
