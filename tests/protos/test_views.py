"""A view names fields of a request as the request numbers them, in types with the same encoding."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from cas.pb import remote_execution_pb2, views_pb2

VIEWS = {"FindMissing": "FindMissingBlobsRequest", "BatchRead": "BatchReadBlobsRequest"}

SAME_ENCODING = {
    FieldDescriptor.TYPE_MESSAGE: FieldDescriptor.TYPE_BYTES,
    FieldDescriptor.TYPE_ENUM: FieldDescriptor.TYPE_INT32,
}
"""What a view may read a type as; every other type only as itself."""


def _layout(message: Descriptor, types: Mapping[int, int]) -> dict[str, tuple[int, int, bool]]:
    return {
        field.name: (field.number, types.get(field.type, field.type), field.is_repeated)
        for field in message.fields
    }


@pytest.mark.parametrize(("view", "request_name"), VIEWS.items())
def test_a_view_has_every_field_of_its_request(view: str, request_name: str) -> None:
    ours = views_pb2.DESCRIPTOR.message_types_by_name[view]
    theirs = remote_execution_pb2.DESCRIPTOR.message_types_by_name[request_name]
    assert _layout(ours, {}) == _layout(theirs, SAME_ENCODING)


def test_every_view_has_its_request() -> None:
    assert set(views_pb2.DESCRIPTOR.message_types_by_name) == set(VIEWS)
