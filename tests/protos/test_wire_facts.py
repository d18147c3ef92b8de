"""Our definitions say on the wire what the reference says, as recorded in wire_facts.tsv."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto

from cas.pb import asset_pb2, bytestream_pb2, remote_execution_pb2, semver_pb2
from tests.protos import facts
from tests.protos.facts import Fact

TABLE = Path(__file__).with_name("wire_facts.tsv")
REAPI = "build.bazel.remote.execution.v2"

SERVICES = {
    "build.bazel.remote.asset.v1.Fetch",
    "build.bazel.remote.asset.v1.Push",
    "google.bytestream.ByteStream",
    f"{REAPI}.ActionCache",
    f"{REAPI}.Capabilities",
    f"{REAPI}.ContentAddressableStorage",
}


@pytest.fixture(scope="module")
def ours() -> set[Fact]:
    files = []
    for module in (asset_pb2, bytestream_pb2, remote_execution_pb2, semver_pb2):
        file = FileDescriptorProto()
        module.DESCRIPTOR.CopyToProto(file)
        files.append(file)
    return facts.of_files(files)


@pytest.fixture(scope="module")
def reference() -> set[Fact]:
    return facts.load(TABLE.read_text(encoding="utf-8"))


def test_everything_of_ours_is_in_the_reference_with_equal_facts(
    ours: set[Fact], reference: set[Fact]
) -> None:
    assert sorted(ours - reference) == []


def test_what_we_keep_is_complete(ours: set[Fact], reference: set[Fact]) -> None:
    kept = {fact.owner for fact in ours}
    absent = {fact for fact in reference if fact.owner in kept} - ours
    assert sorted(absent) == []


def test_the_services_are_those_of_a_cache(ours: set[Fact]) -> None:
    assert {fact.owner for fact in ours if fact.kind == "method"} == SERVICES


def test_every_type_that_a_field_or_method_names_is_kept_or_imported(ours: set[Fact]) -> None:
    kept = {fact.owner for fact in ours}
    named = {
        word
        for fact in ours
        if fact.kind in ("field", "method")
        for word in fact.what.split()
        if "." in word and not word.startswith(("google.protobuf.", "google.rpc."))
    }
    assert named - kept == set()


def test_the_table_survives_a_round_trip(reference: set[Fact]) -> None:
    assert facts.load(facts.dump(reference)) == reference


def test_a_malformed_table_is_refused() -> None:
    with pytest.raises(ValueError, match="line 2 has 1 columns"):
        facts.load("message\tA\t\t\nbroken\n")
