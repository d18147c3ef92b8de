"""What is inside a blob or an action result: REAPI's messages as values that JSON can hold.

Rule: pure; bytes to values.  What a blob is, nothing says: it is taken for a message only if it
is exactly what that message's canonical form (REAPI: Directory, Tree) would be, and makes sense as
one.  Text is a client's and stays as it is: whoever shows it must escape it.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any, Final, Literal, TypeVar

from google.protobuf.message import DecodeError, Message

from cas import digest as digests
from cas.digest import Digest, Function, shorten
from cas.errors import InvalidArgument
from cas.pb import remote_execution_pb2 as pb

Kind = Literal["directory", "tree", "action", "command", "text", "bytes"]

KINDS: Final[tuple[Kind, ...]] = ("directory", "tree", "action", "command", "text", "bytes")

MOST: Final = 2000
"""Entries of one list that are told."""
PREVIEW: Final = 16 << 10
"""Bytes of content that are told."""
MAX_NODES: Final = 100_000
"""Files, directories, links of what is looked through; hostile messages hold one in two bytes."""
MAX_DEPTH: Final = 200
"""Names in a path within a tree."""

Values = dict[str, Any]
M = TypeVar("M", bound=Message)
T = TypeVar("T")


def kind_of(data: bytes, function: Function) -> Kind:
    """What a whole blob seems to be."""
    if _directory(data, function):
        return "directory"
    if _tree(data, function):
        return "tree"
    action = _exact(pb.Action, data)
    if action is not None and all(
        digest_of(digest, function) for digest in (action.command_digest, action.input_root_digest)
    ):
        return "action"
    command = _exact(pb.Command, data)
    if (
        command is not None
        and 0 < len(command.arguments) <= MAX_NODES
        and all(map(_is_word, command.arguments))
    ):
        return "command"
    return "text" if is_text(data) else "bytes"


def told(kind: Kind, data: bytes, function: Function, path: str = "") -> Values:
    """The content of a whole blob, as `kind`; `path` leads to a directory within a tree.

    Raises InvalidArgument where it is none.
    """
    if kind == "directory":
        return _entries(_parsed(pb.Directory, data), function)
    if kind == "tree":
        return _of_tree(_parsed(pb.Tree, data), function, path)
    if kind == "action":
        return _of_action(_parsed(pb.Action, data), function)
    if kind == "command":
        return _of_command(_parsed(pb.Command, data))
    return preview(data, len(data), as_text=kind == "text")


def preview(data: bytes, size: int, *, as_text: bool) -> Values:
    """The beginning of `size` bytes that begin with `data`."""
    shown = data[:PREVIEW]
    if as_text:
        return {"text": shown.decode(errors="replace"), "cut": size > len(shown)}
    rows = [shown[at : at + 16] for at in range(0, min(len(shown), 1024), 16)]
    return {"hex": [row.hex(" ") for row in rows], "cut": size > 16 * len(rows)}


def is_text(data: bytes) -> bool:
    """Whether it is text, or the beginning of one, that a person may want to read."""
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(data)
    except UnicodeDecodeError:
        return False
    return not any(c < " " and c not in "\t\n\r\f\x1b" for c in text)


def result(message: pb.ActionResult, function: Function) -> Values:
    """What an action result says."""
    links = [
        *message.output_symlinks,
        *message.output_file_symlinks,
        *message.output_directory_symlinks,
    ]
    times = message.execution_metadata
    return {
        "exit_code": message.exit_code,
        "entries": [
            *_some(
                message.output_files,
                lambda file: {
                    "type": "file",
                    "name": file.path,
                    "executable": file.is_executable,
                    **_digest(file.digest, function),
                },
            ),
            *_some(message.output_directories, lambda found: _output(found, function)),
            *_some(links, lambda link: {"type": "link", "name": link.path, "target": link.target}),
        ],
        "left_out": sum(
            max(0, len(listed) - MOST)
            for listed in (message.output_files, message.output_directories, links)
        ),
        "stdout": _output_of(message.stdout_raw, message.stdout_digest, function),
        "stderr": _output_of(message.stderr_raw, message.stderr_digest, function),
        "worker": times.worker,
        "began": times.execution_start_timestamp.ToMilliseconds() or None,
        "ended": times.execution_completed_timestamp.ToMilliseconds() or None,
    }


def keys_in(values: Any) -> set[bytes]:
    """The keys of the digests that are told anywhere in `values`."""
    if isinstance(values, dict):
        found = {values["key"]} if isinstance(values.get("key"), bytes) else set()
        return found.union(*map(keys_in, values.values()))
    return set().union(*map(keys_in, values)) if isinstance(values, list) else set()


def settled(values: Any, absent: set[bytes]) -> Any:
    """`values` with ``absent: true`` in place of each key that is among `absent`."""
    if isinstance(values, dict):
        made = {name: settled(value, absent) for name, value in values.items() if name != "key"}
        if values.get("key") in absent:
            made["absent"] = True
        return made
    return [settled(value, absent) for value in values] if isinstance(values, list) else values


def digest_of(digest: pb.Digest, function: Function) -> Digest | None:
    """None for what is no digest of that function."""
    try:
        return digests.parse(digest.hash, digest.size_bytes, function)
    except InvalidArgument:
        return None


def _of_tree(tree: pb.Tree, function: Function, path: str) -> Values:
    if not _is_bounded(tree):
        raise InvalidArgument(f"the tree has more than {MAX_NODES} entries")
    children = {
        function.hash(raw): child
        for child in tree.children
        for raw in (child.SerializeToString(deterministic=True),)
    }
    here = tree.root
    names = [name for name in path.split("/") if name]
    if len(names) > MAX_DEPTH:
        raise InvalidArgument(f"path of {len(names)} names; expected at most {MAX_DEPTH}")
    for name in names:
        node = next((node for node in here.directories if node.name == name), None)
        found = None if node is None else digest_of(node.digest, function)
        child = None if found is None else children.get(found.hash)
        if child is None:
            raise InvalidArgument(f"the tree has no directory {shorten(path)}")
        here = child
    values = _entries(here, function)
    for entry in values["entries"]:
        if entry["type"] == "directory":
            # It lies within the tree, and need not be a blob of its own.
            entry["within"] = "/".join([*names, entry["name"]])
            entry.pop("key", None)
    return {**values, "path": names, "directories": 1 + len(tree.children)}


def _entries(directory: pb.Directory, function: Function) -> Values:
    return {
        "entries": [
            *_some(
                directory.directories,
                lambda node: {
                    "type": "directory",
                    "name": node.name,
                    **_digest(node.digest, function),
                },
            ),
            *_some(
                directory.files,
                lambda node: {
                    "type": "file",
                    "name": node.name,
                    "executable": node.is_executable,
                    **_digest(node.digest, function),
                },
            ),
            *_some(
                directory.symlinks,
                lambda node: {"type": "link", "name": node.name, "target": node.target},
            ),
        ],
        "left_out": sum(
            max(0, len(listed) - MOST)
            for listed in (directory.directories, directory.files, directory.symlinks)
        ),
    }


def _of_action(action: pb.Action, function: Function) -> Values:
    return {
        "command": _digest(action.command_digest, function),
        "input_root": _digest(action.input_root_digest, function),
        "timeout": action.timeout.ToMilliseconds() / 1000 or None,
        "do_not_cache": action.do_not_cache,
        "platform": _pairs(action.platform.properties),
    }


def _of_command(command: pb.Command) -> Values:
    named = (command.output_paths, command.output_files, command.output_directories)
    return {
        "arguments": _some(command.arguments, str),
        "environment": _pairs(command.environment_variables),
        "outputs": _some(chain(*named), str),
        "working_directory": command.working_directory,
        "platform": _pairs(command.platform.properties),
        "left_out": max(0, len(command.arguments) - MOST) + max(0, sum(map(len, named)) - MOST),
    }


def _output(found: pb.OutputDirectory, function: Function) -> Values:
    named = {"type": "directory", "name": found.path}
    if found.tree_digest.hash:
        return {**named, "as": "tree", **_digest(found.tree_digest, function)}
    return {**named, "as": "directory", **_digest(found.root_directory_digest, function)}


def _output_of(raw: bytes, digest: pb.Digest, function: Function) -> Values | None:
    if raw:
        return preview(raw, len(raw), as_text=True)
    return _digest(digest, function) if digest.hash else None


def _digest(digest: pb.Digest, function: Function) -> Values:
    """``digest``, its ``size`` and ``key``; what is none as it is."""
    found = digest_of(digest, function)
    if found is None:
        return {"malformed": f"{digest.hash[:200]}/{digest.size_bytes}"}
    return {"digest": name_of(found), "size": found.size, "key": found.key}


def name_of(digest: Digest) -> str:
    """``hash/size``, with the function before it where the hash does not tell."""
    function = digest.function
    return f"{function.name}/{digest}" if function.in_names else str(digest)


def _pairs(properties: Iterable[Any]) -> list[list[str]]:
    return _some(properties, lambda pair: [pair.name, pair.value])


def _some(listed: Iterable[Any], tell: Callable[[Any], T]) -> list[T]:
    return [tell(one) for one, _ in zip(listed, range(MOST), strict=False)]


def _directory(data: bytes, function: Function) -> bool:
    message = _exact(pb.Directory, data)
    return message is not None and _makes_sense(message, function)


def _tree(data: bytes, function: Function) -> bool:
    message = _exact(pb.Tree, data)
    return (
        message is not None
        and _is_bounded(message)
        and all(
            directory.ByteSize() == 0 or _makes_sense(directory, function)
            for directory in (message.root, *message.children)
        )
    )


def _is_bounded(tree: pb.Tree) -> bool:
    if len(tree.children) > MAX_NODES:
        return False
    return sum(map(_nodes, tree.children), _nodes(tree.root)) <= MAX_NODES


def _nodes(directory: pb.Directory) -> int:
    return len(directory.files) + len(directory.directories) + len(directory.symlinks)


def _makes_sense(directory: pb.Directory, function: Function) -> bool:
    if _nodes(directory) > MAX_NODES:
        return False
    nodes: list[Any] = [*directory.files, *directory.directories]
    named: list[Any] = [*nodes, *directory.symlinks]
    names = [node.name for node in named]
    return (
        bool(names)
        and all(name not in ("", ".", "..") and "/" not in name for name in names)
        and all(digest_of(node.digest, function) for node in nodes)
    )


def _is_word(text: str) -> bool:
    return not any(c < " " and c not in "\t\n" for c in text)


def _exact(message: type[M], data: bytes) -> M | None:
    """`data` as a message, if it is nothing but one, in its canonical form."""
    if not data:
        return None
    try:
        made = message()
        made.ParseFromString(data)
    except DecodeError:
        return None
    made.DiscardUnknownFields()
    return made if made.SerializeToString(deterministic=True) == data else None


def _parsed(message: type[M], data: bytes) -> M:
    made = message()
    try:
        made.ParseFromString(data)
    except DecodeError:
        raise InvalidArgument("the blob cannot be read as that") from None
    return made
