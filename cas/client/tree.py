"""Directories as REAPI describes them: messages to values and back.

Rule: pure.  Canonical (REAPI's Directory: each list sorted by name, no name twice, fields in
order), so that the same files make the same digest on every machine.  A mode is written out
(node_properties.unix_mode) only where it is not the usual one, so that a plain tree has the
digest that any other client gives it.  What comes from a remote is checked before anyone
uses a name in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from google.protobuf.message import DecodeError

from cas import digest as digests
from cas.client.errors import BadTree
from cas.digest import Digest, Function, parse
from cas.errors import InvalidArgument
from cas.pb import remote_execution_pb2 as pb

FILE_MODE = 0o644
PROGRAM_MODE = 0o755
FOLDER_MODE = 0o755

KEPT = 0o777
"""Bits of a mode that are kept; set-user-ID and its like are nobody's to hand on."""

MAX_ENTRIES = 20_000_000
"""Of one tree, each place counted where it stands: a few messages can describe more files
than any disk holds."""


@dataclass(frozen=True, slots=True)
class FileNode:
    name: str
    digest: Digest
    mode: int = FILE_MODE


@dataclass(frozen=True, slots=True)
class FolderNode:
    name: str
    digest: Digest


@dataclass(frozen=True, slots=True)
class LinkNode:
    name: str
    target: str


@dataclass(frozen=True, slots=True)
class Listing:
    """One directory.  `mode` is its own."""

    files: tuple[FileNode, ...] = ()
    folders: tuple[FolderNode, ...] = ()
    links: tuple[LinkNode, ...] = ()
    mode: int = FOLDER_MODE

    def names(self) -> set[str]:
        return (
            {node.name for node in self.files}
            | {node.name for node in self.folders}
            | {node.name for node in self.links}
        )


@dataclass(slots=True)
class Folders:
    """Directory messages by digest; a directory that stands in many places is there once."""

    root: Digest
    listings: dict[bytes, Listing] = field(default_factory=dict)

    def walk(self) -> Iterator[tuple[tuple[str, ...], Listing]]:
        """Each place of each directory, parents first, as the names that lead to it."""
        todo: list[tuple[tuple[str, ...], bytes]] = [((), self.root.key)]
        count = 0
        while todo:
            path, key = todo.pop()
            listing = self.listings[key]
            count += 1 + len(listing.files) + len(listing.links)
            if count > MAX_ENTRIES:
                raise BadTree(f"tree {self.root} has more than {MAX_ENTRIES} entries")
            yield path, listing
            todo += (((*path, node.name), node.digest.key) for node in listing.folders)


def canonical(listing: Listing) -> Listing:
    """The same, in the order that REAPI asks for."""
    return Listing(
        tuple(sorted(listing.files, key=_name)),
        tuple(sorted(listing.folders, key=_name)),
        tuple(sorted(listing.links, key=_name)),
        listing.mode,
    )


def _name(node: FileNode | FolderNode | LinkNode) -> str:
    # By code point, which is the order of the names' UTF-8 as well.
    return node.name


def encode(listing: Listing) -> bytes:
    """The canonical bytes of a Directory message; raises BadTree for a name that none has."""
    return message(listing).SerializeToString(deterministic=True)


def message(listing: Listing) -> pb.Directory:
    """The canonical Directory message."""
    directory = pb.Directory()
    listing = canonical(listing)
    for file in listing.files:
        executable = file.mode & 0o100 != 0
        node = directory.files.add(name=check_name(file.name), is_executable=executable)
        _set_digest(node.digest, file.digest)
        if file.mode != (PROGRAM_MODE if executable else FILE_MODE):
            node.node_properties.unix_mode.value = file.mode & KEPT
    for folder in listing.folders:
        _set_digest(directory.directories.add(name=check_name(folder.name)).digest, folder.digest)
    for link in listing.links:
        directory.symlinks.add(name=check_name(link.name), target=link.target)
    if listing.mode != FOLDER_MODE:
        directory.node_properties.unix_mode.value = listing.mode & KEPT
    return directory


def decode(raw: bytes, digest: Digest) -> Listing:
    """Reads a Directory message; raises BadTree naming what in it is not to be trusted."""
    try:
        directory = pb.Directory.FromString(raw)
    except DecodeError:
        raise BadTree(
            f"blob {digest} is not a directory; give the digest that push printed"
        ) from None
    return read(directory, digest.function, f"directory {digest}")


def read(directory: pb.Directory, function: Function, where: str) -> Listing:
    """A Directory message as a value; raises BadTree."""
    names: set[str] = set()

    def named(name: str) -> str:
        try:
            check_name(name)
        except BadTree as error:
            raise BadTree(f"{where}: {error}") from None
        if name in names:
            raise BadTree(f"{where} has two entries named {name!r}")
        names.add(name)
        return name

    def blob(of: pb.Digest) -> Digest:
        try:
            return parse(of.hash, of.size_bytes, function)
        except InvalidArgument as error:
            raise BadTree(f"{where}: {error}") from None

    return Listing(
        tuple(
            FileNode(named(node.name), blob(node.digest), _file_mode(node))
            for node in directory.files
        ),
        tuple(FolderNode(named(node.name), blob(node.digest)) for node in directory.directories),
        tuple(
            LinkNode(named(node.name), _check_target(node.target, where))
            for node in directory.symlinks
        ),
        _mode(directory.node_properties, FOLDER_MODE),
    )


def check_name(name: str) -> str:
    """Returns `name` if it can be one entry of a directory, and nothing but that."""
    if not name or name in {".", ".."} or "/" in name or "\0" in name:
        raise BadTree(f"{name!r} cannot be a file's name")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise BadTree(f"{name!r} is not UTF-8, which REAPI wants of a name") from None
    return name


def to_tree(folders: Folders) -> bytes:
    """A Tree message: all directories in one blob, as an action result names them."""
    tree = pb.Tree(root=message(folders.listings[folders.root.key]))
    for key in sorted(folders.listings):
        if key != folders.root.key:
            tree.children.append(message(folders.listings[key]))
    return tree.SerializeToString(deterministic=True)


def from_tree(raw: bytes, digest: Digest) -> Folders:
    """Reads a Tree message; raises BadTree where it names a directory that it lacks."""
    try:
        tree = pb.Tree.FromString(raw)
    except DecodeError:
        raise BadTree(f"blob {digest} is not a tree") from None
    where = f"tree {digest}"
    function = digest.function
    messages = [tree.root, *tree.children]
    listings = {}
    for directory in messages:
        # Another client's messages need not be canonical; their own bytes are what is named.
        named = digests.of(directory.SerializeToString(), function)
        listings[named.key] = read(directory, function, where)
    root = digests.of(tree.root.SerializeToString(), function)
    for listing in listings.values():
        for folder in listing.folders:
            if folder.digest.key not in listings:
                raise BadTree(f"{where} lacks directory {folder.digest}")
    return Folders(root, listings)


def build(
    places: Iterable[tuple[tuple[str, ...], Listing]], function: Function
) -> tuple[Folders, dict[bytes, bytes]]:
    """Digests for directories given children first, each without its `folders`; and the bytes
    of each message by its digest's key.  The last one is the root."""
    inside: dict[tuple[str, ...], list[FolderNode]] = {}
    listings: dict[bytes, Listing] = {}
    raws: dict[bytes, bytes] = {}
    digest = None
    for path, given in places:
        folders = tuple(inside.pop(path, ()))
        listing = canonical(Listing(given.files, folders, given.links, given.mode))
        raw = encode(listing)
        digest = digests.of(raw, function)
        listings[digest.key] = listing
        raws[digest.key] = raw
        if path:
            inside.setdefault(path[:-1], []).append(FolderNode(path[-1], digest))
    assert digest is not None
    return Folders(digest, listings), raws


def _file_mode(node: pb.FileNode) -> int:
    usual = PROGRAM_MODE if node.is_executable else FILE_MODE
    return _mode(node.node_properties, usual)


def _mode(properties: pb.NodeProperties, usual: int) -> int:
    return properties.unix_mode.value & KEPT if properties.HasField("unix_mode") else usual


def _check_target(target: str, where: str) -> str:
    if not target or "\0" in target:
        raise BadTree(f"{where}: {target!r} cannot be a symlink's target")
    return target


def _set_digest(message: pb.Digest, digest: Digest) -> None:
    message.hash = digest.hex
    message.size_bytes = digest.size
