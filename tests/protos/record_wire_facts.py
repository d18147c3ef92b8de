"""Records the wire facts of the reference protocol definitions into wire_facts.tsv.

Rule: run by hand when the reference moves on, never by the suite:
`python -m tests.protos.record_wire_facts PROTO_ROOT BYTESTREAM_PROTO`, where PROTO_ROOT holds
build/bazel/… of the Remote Execution API and BYTESTREAM_PROTO is google's bytestream.proto.
The table holds all of the reference, also what we leave out.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from importlib.resources import as_file, files
from pathlib import Path

import google.api
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from grpc_tools import protoc

from tests.protos import facts

TABLE = Path(__file__).with_name("wire_facts.tsv")
SOURCES = (
    "build/bazel/remote/execution/v2/remote_execution.proto",
    "build/bazel/semver/semver.proto",
    "google/bytestream/bytestream.proto",
    "build/bazel/remote/asset/v1/remote_asset.proto",
)


def compile_reference(root: Path, bytestream: Path) -> FileDescriptorSet:
    """Descriptors of `SOURCES` alone; raises RuntimeError when protoc refuses them."""
    googleapis = Path(next(iter(google.api.__path__))).parent.parent
    with (
        tempfile.TemporaryDirectory() as scratch,
        as_file(files("grpc_tools").joinpath("_proto")) as well_known,
    ):
        staged = Path(scratch, SOURCES[2])
        staged.parent.mkdir(parents=True)
        shutil.copyfile(bytestream, staged)
        # googleapis-common-protos ships this file under another name.
        operations = Path(scratch, "google/longrunning/operations.proto")
        operations.parent.mkdir(parents=True)
        operations.write_text(
            'syntax = "proto3"; import public "google/longrunning/operations_proto.proto";'
        )
        output = Path(scratch, "descriptors")
        paths = [f"--proto_path={path}" for path in (root, scratch, well_known, googleapis)]
        status = protoc.main(["protoc", *paths, f"--descriptor_set_out={output}", *SOURCES])
        if status != 0:
            raise RuntimeError(f"protoc exited with {status}")
        return FileDescriptorSet.FromString(output.read_bytes())


def main(arguments: list[str]) -> int:
    if len(arguments) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    descriptors = compile_reference(Path(arguments[0]), Path(arguments[1]))
    recorded = facts.of_files(descriptors.file)
    TABLE.write_text(facts.dump(recorded), encoding="utf-8")
    print(f"{len(recorded)} facts in {TABLE}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
