"""What is inside a blob: told as it is, for what it is, within bounds."""

from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cas import digest as digests
from cas.digest import SHA256
from cas.errors import InvalidArgument
from cas.pb import remote_execution_pb2 as pb
from cas.reapi import inside
from cas.reapi.inside import KINDS, MOST, PREVIEW, Kind


def proto(data: bytes) -> pb.Digest:
    return pb.Digest(hash=hashlib.sha256(data).hexdigest(), size_bytes=len(data))


def file(name: str, data: bytes = b"x") -> pb.FileNode:
    return pb.FileNode(name=name, digest=proto(data))


LEAF = pb.Directory(files=[file("leaf.txt")])
BRANCH = pb.Directory(
    files=[file("b.txt")],
    directories=[pb.DirectoryNode(name="leaf", digest=proto(LEAF.SerializeToString()))],
    symlinks=[pb.SymlinkNode(name="to", target="../elsewhere")],
)
ROOT = pb.Directory(
    directories=[pb.DirectoryNode(name="branch", digest=proto(BRANCH.SerializeToString()))]
)
TREE = pb.Tree(root=ROOT, children=[LEAF, BRANCH])
ACTION = pb.Action(command_digest=proto(b"c"), input_root_digest=proto(b""))
COMMAND = pb.Command(arguments=["cc", "-c", "a.c"], output_paths=["a.o"])


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (BRANCH.SerializeToString(), "directory"),
        (TREE.SerializeToString(), "tree"),
        (ACTION.SerializeToString(), "action"),
        (COMMAND.SerializeToString(), "command"),
        (b"", "text"),
        (b"hello\n", "text"),
        ("grüße\n".encode(), "text"),
        (b"\x7fELF\x02\x01\x01\0\0\0", "bytes"),
        (pb.Directory(files=[file("a/b")]).SerializeToString(), "bytes"),
        (pb.Directory(files=[file("..")]).SerializeToString(), "bytes"),
        (pb.Directory(files=[pb.FileNode(name="a")]).SerializeToString(), "bytes"),
        (BRANCH.SerializeToString() + b"\xfa\x01\x01x", "bytes"),
    ],
)
def test_a_blob_is_taken_for_what_it_is(data: bytes, kind: Kind) -> None:
    assert inside.kind_of(data, SHA256) == kind


@given(st.binary(max_size=300), st.sampled_from(KINDS), st.text(max_size=20))
def test_any_bytes_are_told_or_refused(data: bytes, kind: Kind, path: str) -> None:
    inside.told(inside.kind_of(data, SHA256), data, SHA256)
    try:
        values = inside.told(kind, data, SHA256, path)
    except InvalidArgument:
        return
    keys = inside.keys_in(values)
    json.dumps(inside.settled(values, keys))


@given(st.text(max_size=60), st.booleans())
def test_the_beginning_of_a_text_is_text(text: str, cut: bool) -> None:
    clean = "".join(c for c in text if c >= " " and not "\ud800" <= c <= "\udfff")
    data = clean.encode()
    assert inside.is_text(data[: len(data) - 1] if cut else data)


def test_a_directory_is_listed() -> None:
    values = inside.told("directory", BRANCH.SerializeToString(), SHA256)
    leaf = digests.of(LEAF.SerializeToString())
    kinds = [(entry["type"], entry["name"]) for entry in values["entries"]]
    assert kinds == [("directory", "leaf"), ("file", "b.txt"), ("link", "to")]
    assert values["entries"][0]["digest"] == str(leaf)
    assert values["entries"][2]["target"] == "../elsewhere"
    told = inside.settled(values, {leaf.key})
    assert [entry.get("absent", False) for entry in told["entries"]] == [True, False, False]
    assert inside.keys_in(told) == set()


def test_a_tree_is_walked_by_names() -> None:
    data = TREE.SerializeToString()
    values = inside.told("tree", data, SHA256)
    assert (values["path"], values["directories"]) == ([], 3)
    assert values["entries"][0]["within"] == "branch"
    assert inside.keys_in(values) == set(), "what lies within a tree need not be a blob"
    values = inside.told("tree", data, SHA256, "branch/leaf")
    assert [entry["name"] for entry in values["entries"]] == ["leaf.txt"]
    for path in ("nothing", "branch/nothing", "branch/b.txt", "/".join("a" * 500)):
        with pytest.raises(InvalidArgument):
            inside.told("tree", data, SHA256, path)


def test_a_tree_that_lies_about_its_children_leads_nowhere() -> None:
    lying = pb.Tree(root=ROOT, children=[LEAF])
    with pytest.raises(InvalidArgument, match="no directory 'branch'"):
        inside.told("tree", lying.SerializeToString(), SHA256, "branch")


def test_long_lists_and_contents_are_cut() -> None:
    many = pb.Directory(files=[file(f"{number:06d}") for number in range(MOST + 5)])
    values = inside.told("directory", many.SerializeToString(), SHA256)
    assert (len(values["entries"]), values["left_out"]) == (MOST, 5)
    text = inside.told("text", b"a" * (PREVIEW + 1), SHA256)
    assert (len(text["text"]), text["cut"]) == (PREVIEW, True)
    raw = inside.told("bytes", bytes(5000), SHA256)
    assert (len(raw["hex"]), raw["cut"]) == (64, True)
    assert inside.told("bytes", b"abc", SHA256) == {"hex": ["61 62 63"], "cut": False}


def test_an_action_and_its_command() -> None:
    values = inside.told("action", ACTION.SerializeToString(), SHA256)
    assert values["command"]["digest"] == str(digests.of(b"c"))
    assert inside.told("command", COMMAND.SerializeToString(), SHA256)["outputs"] == ["a.o"]
    with pytest.raises(InvalidArgument):
        inside.told("command", b"\xff", SHA256)


def test_an_action_result_says_what_it_names() -> None:
    result = pb.ActionResult(
        exit_code=3,
        output_files=[pb.OutputFile(path="a.o", digest=proto(b"o"), is_executable=True)],
        output_directories=[pb.OutputDirectory(path="d", tree_digest=proto(b"t"))],
        output_symlinks=[pb.OutputSymlink(path="l", target="a.o")],
        stdout_raw=b"<b>hello</b>",
        stderr_digest=proto(b"e"),
    )
    values = inside.result(result, SHA256)
    assert [entry["type"] for entry in values["entries"]] == ["file", "directory", "link"]
    assert values["entries"][1]["as"] == "tree"
    assert values["stdout"] == {"text": "<b>hello</b>", "cut": False}
    assert len(inside.keys_in(values)) == 3
    bad = pb.ActionResult(output_files=[pb.OutputFile(path="x", digest=pb.Digest(hash="<i>"))])
    assert inside.result(bad, SHA256)["entries"][0]["malformed"] == "<i>/0"


@pytest.mark.parametrize("field", [b"\x0a\x00", b"\x12\x00", b"\x1a\x00", b"\x22\x00"])
def test_a_message_of_countless_empty_parts_is_not_looked_through(field: bytes) -> None:
    data = field * (inside.MAX_NODES + 1)
    kind = inside.kind_of(data, SHA256)
    assert kind == "bytes"
    for forced in ("tree", "directory", "command"):
        try:
            values = inside.told(forced, data, SHA256)
        except InvalidArgument:
            continue
        assert len(json.dumps(inside.settled(values, set()))) < 1 << 20
