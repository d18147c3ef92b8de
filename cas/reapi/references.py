"""What an action result needs to be of use: every blob that it names, its trees' included.

Rule: messages to digest keys; reads trees through the store, decides nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from google.protobuf.message import DecodeError, Message

from cas import digest as digests
from cas.digest import Digest, Function
from cas.errors import InvalidArgument, NotFound
from cas.pb import remote_execution_pb2 as pb
from cas.reapi.blobs import read_whole
from cas.reapi.runtime import Runtime
from cas.store.interface import BlobStore

M = TypeVar("M", bound=Message)

MAX_REFERENCES = 1_000_000
"""Blobs that one action result may need: bounds what following its trees can cost."""


class References(NamedTuple):
    """`keys` of all blobs; complete only if every tree could be read (`expanded`)."""

    keys: list[bytes]
    expanded: bool


@dataclass(slots=True)
class Named:
    """What an action result names itself."""

    keys: list[bytes] = field(default_factory=list)
    """All of it: files, standard output and error, trees, root directories."""
    trees: list[Digest] = field(default_factory=list)
    """Tree messages: they name further files."""
    roots: list[Digest] = field(default_factory=list)
    """Directory messages: they name further files and directories."""


def named_by(result: pb.ActionResult, function: Function) -> Named:
    """Raises InvalidArgument naming the output whose digest is malformed."""
    named = Named()
    keys: dict[bytes, None] = {}

    def add(digest: pb.Digest, what: str) -> Digest:
        try:
            parsed = digests.parse(digest.hash, digest.size_bytes, function)
        except InvalidArgument as error:
            raise InvalidArgument(f"{what}: {error}") from None
        keys[parsed.key] = None
        return parsed

    for file in result.output_files:
        add(file.digest, f"output file {digests.shorten(file.path)}")
    for directory in result.output_directories:
        what = f"output directory {digests.shorten(directory.path)}"
        has_root = directory.HasField("root_directory_digest")
        if directory.HasField("tree_digest") or not has_root:
            named.trees.append(add(directory.tree_digest, what))
        if has_root:
            named.roots.append(add(directory.root_directory_digest, what))
    if result.HasField("stdout_digest"):
        add(result.stdout_digest, "stdout_digest")
    if result.HasField("stderr_digest"):
        add(result.stderr_digest, "stderr_digest")
    named.keys = list(keys)
    return named


async def expand(
    store: BlobStore, runtime: Runtime, named: Named, function: Function
) -> References:
    """Follows trees and directories; what is absent leaves `expanded` false.

    Raises InvalidArgument when a blob named as a tree or directory is none, or names
    something malformed, or when there is more than `MAX_REFERENCES`.
    """
    keys = dict.fromkeys(named.keys)
    expanded = True
    for tree in named.trees:
        try:
            raw = await read_whole(store, runtime, tree)
        except NotFound:
            expanded = False
            continue
        message = _decode(pb.Tree, raw, tree)
        for directory in (message.root, *message.children):
            _add_files(keys, directory, tree, function)
    todo = list(named.roots)
    seen = {root.key for root in todo}
    while todo:
        digest = todo.pop()
        try:
            raw = await read_whole(store, runtime, digest)
        except NotFound:
            expanded = False
            continue
        directory = _decode(pb.Directory, raw, digest)
        _add_files(keys, directory, digest, function)
        for node in directory.directories:
            child = _parse(node.digest, digest, function)
            keys[child.key] = None
            if child.key not in seen:
                seen.add(child.key)
                todo.append(child)
    return References(list(keys), expanded)


def _add_files(
    keys: dict[bytes, None], directory: pb.Directory, holder: Digest, function: Function
) -> None:
    for file in directory.files:
        keys[_parse(file.digest, holder, function).key] = None
    if len(keys) > MAX_REFERENCES:
        raise InvalidArgument(
            f"the action result needs more than {MAX_REFERENCES} blobs, the most that is served"
        )


def _parse(digest: pb.Digest, holder: Digest, function: Function) -> Digest:
    try:
        return digests.parse(digest.hash, digest.size_bytes, function)
    except InvalidArgument as error:
        raise InvalidArgument(f"in tree {holder}: {error}") from None


def _decode(message: type[M], raw: bytes, digest: Digest) -> M:
    try:
        return message.FromString(raw)
    except DecodeError:
        name = message.DESCRIPTOR.name
        raise InvalidArgument(f"blob {digest} is not a {name} message") from None
