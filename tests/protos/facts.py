"""What a protocol definition says on the wire, as comparable lines.

Rule: pure functions from descriptors to facts, shared by the recorder and the test so that both
speak the same language.  Names of files and packages' options are not facts: two definitions
with equal facts are interchangeable in binary and, as JSON names follow from fields' names, in
proto-JSON.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    ServiceDescriptorProto,
)


class Fact(NamedTuple):
    """One member of a message, enum or service; written as one tab-separated line."""

    kind: str
    """`field`, `value` or `method`; `message` for the message itself, with an empty member."""
    owner: str
    """Full name of the message, enum or service."""
    member: str
    what: str
    """A field's number, label and type; a value's number; a method's types."""


def of_files(files: Iterable[FileDescriptorProto]) -> set[Fact]:
    """The facts of everything that `files` define."""
    return {fact for file in files for fact in _of_file(file)}


def dump(facts: Iterable[Fact]) -> str:
    """Sorted lines, so that a change of the reference is a readable difference."""
    return "".join("\t".join(fact) + "\n" for fact in sorted(facts))


def load(text: str) -> set[Fact]:
    """The inverse of `dump`; raises ValueError on a line that is not four columns."""
    facts = set()
    for number, line in enumerate(text.splitlines(), 1):
        columns = line.split("\t")
        if len(columns) != len(Fact._fields):
            raise ValueError(f"line {number} has {len(columns)} columns, expected 4")
        facts.add(Fact(*columns))
    return facts


def _of_file(file: FileDescriptorProto) -> Iterator[Fact]:
    for message in file.message_type:
        yield from _of_message(message, file.package)
    for enum in file.enum_type:
        yield from _of_enum(enum, file.package)
    for service in file.service:
        yield from _of_service(service, file.package)


def _of_message(message: DescriptorProto, scope: str) -> Iterator[Fact]:
    name = f"{scope}.{message.name}"
    yield Fact("message", name, "", "map entry" if message.options.map_entry else "")
    for field in message.field:
        yield Fact("field", name, field.name, _field(field, message))
    for nested in message.nested_type:
        yield from _of_message(nested, name)
    for enum in message.enum_type:
        yield from _of_enum(enum, name)


def _field(field: FieldDescriptorProto, message: DescriptorProto) -> str:
    label = FieldDescriptorProto.Label.Name(field.label).removeprefix("LABEL_").lower()
    kind = FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    parts = [str(field.number), label, kind, field.type_name.lstrip(".")]
    if field.proto3_optional:
        parts.append("explicit presence")
    elif field.HasField("oneof_index"):
        parts.append(f"oneof {message.oneof_decl[field.oneof_index].name}")
    if field.options.HasField("packed"):
        parts.append(f"packed={field.options.packed}")
    return " ".join(part for part in parts if part)


def _of_enum(enum: EnumDescriptorProto, scope: str) -> Iterator[Fact]:
    for value in enum.value:
        yield Fact("value", f"{scope}.{enum.name}", value.name, str(value.number))


def _of_service(service: ServiceDescriptorProto, scope: str) -> Iterator[Fact]:
    for method in service.method:
        request = ("stream " if method.client_streaming else "") + method.input_type.lstrip(".")
        answer = ("stream " if method.server_streaming else "") + method.output_type.lstrip(".")
        yield Fact("method", f"{scope}.{service.name}", method.name, f"{request} -> {answer}")
