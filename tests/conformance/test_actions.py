"""The action cache, over a real connection.

Each test's docstring says which sentence it holds the server to: of REAPI's comments on
service ActionCache and its messages, or of the design.
"""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from cas.pb import remote_execution_pb2 as pb
from tests.conformance.client import MIB, Blob, Client, fails, fresh, message
from tests.conformance.conftest import Start
from tests.conformance.serving import PATIENCE

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND

EMPTY = Blob(b"")

METADATA = pb.ExecutedActionMetadata(worker="w1")
"""REAPI advises that a result have a field set, so that it isn't empty."""


def get(client: Client, action: Blob, instance: str = "", **hints: Any) -> pb.ActionResult:
    request = pb.GetActionResultRequest(
        instance_name=instance, action_digest=action.digest, **hints
    )
    result: pb.ActionResult = client.get_action_result(request, timeout=PATIENCE)
    return result


def update(
    client: Client, action: Blob, result: pb.ActionResult, instance: str = ""
) -> pb.ActionResult:
    request = pb.UpdateActionResultRequest(
        instance_name=instance, action_digest=action.digest, action_result=result
    )
    answer: pb.ActionResult = client.update_action_result(request, timeout=PATIENCE)
    return answer


def output(blob: Blob, path: str = "out/file") -> pb.OutputFile:
    return pb.OutputFile(path=path, digest=blob.digest)


# ---- What is stored comes back


def test_a_result_is_stored_and_returned(client: Client) -> None:
    """UpdateActionResult: uploads a new execution result.  GetActionResult: retrieves it."""
    action, file, log = fresh(100), fresh(50), fresh(20 * 1024)
    client.put(action, file, log)
    result = pb.ActionResult(
        output_files=[pb.OutputFile(path="a/b", digest=file.digest, is_executable=True)],
        output_symlinks=[pb.OutputSymlink(path="l", target="/nowhere")],
        exit_code=3,
        stdout_digest=log.digest,
        stderr_raw=b"oops",
        execution_metadata=METADATA,
    )
    assert update(client, action, result) == result
    assert get(client, action) == result


def test_an_unknown_action_is_not_found(client: Client) -> None:
    """GetActionResult: NOT_FOUND if the requested ActionResult is not in the cache."""
    action = fresh(100)
    with fails(NOT_FOUND, action.hash):
        get(client, action)


def test_the_action_itself_need_not_be_there(client: Client) -> None:
    """UpdateActionResult: the client must upload the Action first; Bazel does not always, and
    the server has no use for it."""
    action = fresh(100)
    result = pb.ActionResult(execution_metadata=METADATA)
    update(client, action, result)
    assert get(client, action) == result


def test_an_empty_result_is_a_result(client: Client) -> None:
    """ActionResult: it is only advised that at least one field have another value than the
    default."""
    action = fresh(100)
    update(client, action, pb.ActionResult())
    assert get(client, action) == pb.ActionResult()


def test_a_later_result_takes_its_place(client: Client) -> None:
    """UpdateActionResult: uploads a *new* result."""
    action = fresh(100)
    for code in (1, 2, 0):
        update(client, action, pb.ActionResult(exit_code=code, execution_metadata=METADATA))
        assert get(client, action).exit_code == code


def test_results_are_per_instance(client: Client) -> None:
    """Design §4: action results are per instance.  REAPI: an instance is a cache of its own."""
    action = fresh(100)
    instances = ["", "main", "main/sub", "other"]
    for code, instance in enumerate(instances):
        with fails(NOT_FOUND, repr(instance)):
            get(client, action, instance)
        update(
            client, action, pb.ActionResult(exit_code=code, execution_metadata=METADATA), instance
        )
    for code, instance in enumerate(instances):
        assert get(client, action, instance).exit_code == code


def test_instances_that_only_look_alike_are_apart(client: Client) -> None:
    """REAPI: the instance name is an identifier; no part of it is part of another's key."""
    action = fresh(100)
    update(client, action, pb.ActionResult(exit_code=1), "ab")
    for instance in ("a", "b", "ab/c", "AB"):
        with fails(NOT_FOUND):
            get(client, action, instance)


def test_the_digest_function_may_be_told_or_left_out(client: Client) -> None:
    """GetActionResultRequest.digest_function: for SHA256 the client may leave it unset."""
    action = fresh(100)
    result = pb.ActionResult(exit_code=7)
    told = pb.UpdateActionResultRequest(
        action_digest=action.digest,
        action_result=result,
        digest_function=pb.DigestFunction.SHA256,
    )
    client.update_action_result(told, timeout=PATIENCE)
    assert get(client, action) == result
    assert get(client, action, digest_function=pb.DigestFunction.SHA256) == result


RAW_RESULTS = {
    "unknown fields": b"\x20\x03" + b"\xfa\x3e\x02hi" + b"\xf8\x3f\x07",
    "fields out of order": b"\x4a\x04\x0a\x02w1" + b"\x20\x05",
    "a varint longer than needed": b"\x20\x83\x80\x00",
    "a field twice": b"\x20\x01\x20\x02",
    "a default that is written": b"\x20\x00" + b"\x4a\x04\x0a\x02w1",
    "unknown fields within": b"\x4a\x07\x0a\x02w1\xf8\x3f\x07",
}


@pytest.mark.parametrize("raw", RAW_RESULTS.values(), ids=RAW_RESULTS.keys())
def test_stored_bytes_go_back_byte_for_byte(client: Client, raw: bytes) -> None:
    """Design §5: stored bytes go back byte for byte.  (REAPI: a server may modify the result
    and return an equivalent value; this one does not.)"""
    service = "/build.bazel.remote.execution.v2.ActionCache/"
    set_raw: Any = client.channel.unary_unary(service + "UpdateActionResult")
    get_raw: Any = client.channel.unary_unary(service + "GetActionResult")
    digest = fresh(100).digest.SerializeToString()
    head = b"\x12%c%b" % (len(digest), digest)
    assert set_raw(head + b"\x1a%c%b" % (len(raw), raw), timeout=PATIENCE) == raw
    assert get_raw(head, timeout=PATIENCE) == raw


# ---- Completeness


def node(name: str, child: Blob) -> pb.DirectoryNode:
    return pb.DirectoryNode(name=name, digest=child.digest)


def directory(*files: Blob, directories: list[pb.DirectoryNode] | None = None) -> pb.Directory:
    """With a name of its own, so that no other test has stored it."""
    return pb.Directory(
        files=[
            pb.FileNode(name=f"{i}-{fresh(8).hash}", digest=f.digest) for i, f in enumerate(files)
        ],
        directories=directories,
    )


class Outputs:
    """An action result that names a blob in each way there is, and those blobs."""

    def __init__(self) -> None:
        self.file, self.stdout, self.stderr = fresh(100), fresh(101), fresh(20_000)
        self.in_root, self.in_child = fresh(102), fresh(103)
        child = directory(self.in_child)
        self.tree = message(
            pb.Tree(
                root=directory(self.in_root, directories=[node("d", message(child))]),
                children=[child],
            )
        )
        self.in_top, self.in_sub = fresh(104), fresh(105)
        self.sub = message(directory(self.in_sub))
        self.top = message(directory(self.in_top, directories=[node("sub", self.sub)]))
        self.result = pb.ActionResult(
            output_files=[output(self.file)],
            stdout_digest=self.stdout.digest,
            stderr_digest=self.stderr.digest,
            output_directories=[
                pb.OutputDirectory(path="t", tree_digest=self.tree.digest),
                pb.OutputDirectory(path="r", root_directory_digest=self.top.digest),
            ],
            execution_metadata=METADATA,
        )

    def blobs(self) -> dict[str, Blob]:
        return {name: blob for name, blob in vars(self).items() if isinstance(blob, Blob)}


NEEDED = sorted(Outputs().blobs())


def test_a_result_whose_outputs_are_all_there_is_returned(client: Client) -> None:
    """GetActionResult: servers should ensure that any blobs referenced are available."""
    outputs = Outputs()
    client.put(*outputs.blobs().values())
    action = fresh(100)
    update(client, action, outputs.result)
    assert get(client, action) == outputs.result


@pytest.mark.parametrize("needed", NEEDED)
def test_a_result_that_lacks_an_output_is_not_found(client: Client, needed: str) -> None:
    """GetActionResult: likewise; design §5: all of its outputs exist (files, trees and what
    the trees name, stdout and stderr), or NOT_FOUND."""
    outputs = Outputs()
    blobs = outputs.blobs()
    absent = blobs.pop(needed)
    client.put(*blobs.values())
    action = fresh(100)
    update(client, action, outputs.result)
    with fails(NOT_FOUND, action.hash):
        get(client, action)
    # Nothing else was wrong with it.
    client.put(absent)
    update(client, action, outputs.result)
    assert get(client, action) == outputs.result


@pytest.mark.parametrize("needed", NEEDED)
def test_outputs_may_come_after_the_result(client: Client, needed: str) -> None:
    """Design §5: a result is looked at when it is asked for; until then its blobs may be on
    their way, trees included."""
    outputs = Outputs()
    blobs = outputs.blobs()
    late = blobs.pop(needed)
    client.put(*blobs.values())
    action = fresh(100)
    update(client, action, outputs.result)
    client.put(late)
    assert get(client, action) == outputs.result


def test_a_tree_that_came_late_is_looked_into(client: Client) -> None:
    """Design §5: what the trees name must exist, also where the tree itself came last."""
    outputs = Outputs()
    blobs = outputs.blobs()
    late, absent = blobs.pop("tree"), blobs.pop("in_child")
    client.put(*blobs.values())
    action = fresh(100)
    update(client, action, outputs.result)
    client.put(late)
    with fails(NOT_FOUND):
        get(client, action)
    client.put(absent)
    update(client, action, outputs.result)
    assert get(client, action) == outputs.result


def test_the_empty_blob_is_never_missing(client: Client) -> None:
    """Design §5: the empty blob is always present, also in completeness checks."""
    root = directory(EMPTY, directories=[node("empty", EMPTY)])
    tree = message(pb.Tree(root=root, children=[pb.Directory()]))
    top = message(root)
    client.put(tree, top)
    result = pb.ActionResult(
        output_files=[output(EMPTY)],
        stdout_digest=EMPTY.digest,
        stderr_digest=EMPTY.digest,
        output_directories=[
            pb.OutputDirectory(path="t", tree_digest=tree.digest),
            pb.OutputDirectory(path="r", root_directory_digest=top.digest),
            pb.OutputDirectory(path="e", tree_digest=EMPTY.digest),
            pb.OutputDirectory(path="f", root_directory_digest=EMPTY.digest),
        ],
    )
    action = fresh(100)
    update(client, action, result)
    assert get(client, action) == result


def test_another_size_is_missing(client: Client) -> None:
    """Digest: the size is an integral part of it."""
    file, action = fresh(100), fresh(100)
    client.put(file)
    other = pb.Digest(hash=file.hash, size_bytes=99)
    update(client, action, pb.ActionResult(output_files=[pb.OutputFile(path="f", digest=other)]))
    with fails(NOT_FOUND):
        get(client, action)


def test_symlinks_need_nothing(client: Client) -> None:
    """ActionResult.output_symlinks: targets may be anywhere, absolute paths included."""
    action = fresh(100)
    result = pb.ActionResult(
        output_symlinks=[pb.OutputSymlink(path="a", target="/x")],
        output_file_symlinks=[pb.OutputSymlink(path="b", target="../../y")],
        output_directory_symlinks=[pb.OutputSymlink(path="c", target="z")],
    )
    update(client, action, result)
    assert get(client, action) == result


def test_many_outputs(client: Client) -> None:
    """GetActionResult: one answer for however many references."""
    files = [fresh(100) for _ in range(2000)]
    for i in range(0, len(files), 500):
        client.put(*files[i : i + 500])
    action = fresh(100)
    result = pb.ActionResult(output_files=[output(f, f"f{i}") for i, f in enumerate(files)])
    update(client, action, result)
    assert get(client, action) == result
    result.output_files.append(output(fresh(100), "g"))
    update(client, action, result)
    with fails(NOT_FOUND):
        get(client, action)


def test_absent_references_are_refused_where_the_operator_says_so(start: Start) -> None:
    """UpdateActionResult: FAILED_PRECONDITION where something needed is missing."""
    server = start("--require-references")
    with Client(server.address) as client:
        outputs = Outputs()
        blobs = outputs.blobs()
        absent = blobs.pop("in_child")
        client.put(*blobs.values())
        action = fresh(100)
        with fails(grpc.StatusCode.FAILED_PRECONDITION, absent.hash):
            update(client, action, outputs.result)
        with fails(NOT_FOUND):
            get(client, action)
        client.put(absent)
        update(client, action, outputs.result)
        assert get(client, action) == outputs.result


# ---- Inlining


def test_nothing_is_inlined_unless_asked_for(client: Client) -> None:
    """ActionResult.stdout_raw: the server should not inline unless requested."""
    outputs = Outputs()
    client.put(*outputs.blobs().values())
    action = fresh(100)
    update(client, action, outputs.result)
    result = get(client, action, inline_output_files=["another"])
    assert result == outputs.result


def test_stdout_and_stderr_are_inlined(client: Client) -> None:
    """GetActionResultRequest.inline_stdout, inline_stderr: hints to inline them."""
    outputs = Outputs()
    client.put(*outputs.blobs().values())
    action = fresh(100)
    update(client, action, outputs.result)
    for out in (False, True):
        for err in (False, True):
            result = get(client, action, inline_stdout=out, inline_stderr=err)
            assert result.stdout_raw == (outputs.stdout.data if out else b"")
            assert result.stderr_raw == (outputs.stderr.data if err else b"")
            # Whoever wants the digest still finds it.
            assert result.stdout_digest == outputs.stdout.digest
            assert result.stderr_digest == outputs.stderr.digest
    # Nothing of it was stored.
    assert get(client, action) == outputs.result


def test_output_files_are_inlined(client: Client) -> None:
    """GetActionResultRequest.inline_output_files: a hint to inline the files listed."""
    blobs = {f"dir/{i}": fresh(100 + 10_000 * i) for i in range(4)}
    client.put(*blobs.values())
    action = fresh(100)
    result = pb.ActionResult(output_files=[output(blob, path) for path, blob in blobs.items()])
    update(client, action, result)
    wanted = ["dir/1", "dir/3", "nowhere"]
    files = get(client, action, inline_output_files=wanted).output_files
    for file in files:
        assert file.contents == (blobs[file.path].data if file.path in wanted else b"")
        assert file.digest == blobs[file.path].digest


def test_the_empty_blob_inlined(client: Client) -> None:
    """Inlining what is empty is leaving it empty."""
    action = fresh(100)
    result = pb.ActionResult(output_files=[output(EMPTY)], stdout_digest=EMPTY.digest)
    update(client, action, result)
    assert get(client, action, inline_stdout=True, inline_output_files=["out/file"]) == result


def test_what_is_too_large_is_not_inlined(client: Client) -> None:
    """ActionResult.stdout_raw: the server must omit inlining if it would cause the response to
    exceed message size limits: 4 MiB for a client that says nothing else."""
    large, small = fresh(5 * MIB), fresh(1000)
    client.upload(large)
    client.put(small)
    action = fresh(100)
    result = pb.ActionResult(
        stdout_digest=large.digest,
        stderr_digest=small.digest,
        output_files=[output(large, "large"), output(small, "small")],
    )
    update(client, action, result)
    answer = get(
        client,
        action,
        inline_stdout=True,
        inline_stderr=True,
        inline_output_files=["large", "small"],
    )
    assert answer.stdout_raw == b""
    assert answer.stderr_raw == small.data
    assert [file.contents for file in answer.output_files] == [b"", small.data]
    assert answer.stdout_digest == large.digest


def test_all_together_are_not_too_large(client: Client) -> None:
    """ActionResult.stdout_raw: likewise for the sum of what is inlined."""
    blobs = {f"f{i}": fresh(MIB + i) for i in range(6)}
    for blob in blobs.values():
        client.upload(blob)
    action = fresh(100)
    result = pb.ActionResult(output_files=[output(blob, path) for path, blob in blobs.items()])
    update(client, action, result)
    answer = get(client, action, inline_output_files=list(blobs))
    inlined = [file for file in answer.output_files if file.contents]
    assert 2 <= len(inlined) <= 3
    assert all(file.contents == blobs[file.path].data for file in inlined)


def test_what_a_client_sent_inline_is_kept(client: Client) -> None:
    """ActionResult.stdout_raw, OutputFile.contents: clients should not populate them when
    uploading; where they do, the result is good for what it names."""
    file, log, action = fresh(100), fresh(50), fresh(100)
    result = pb.ActionResult(
        output_files=[pb.OutputFile(path="f", digest=file.digest, contents=file.data)],
        stdout_raw=log.data,
        stdout_digest=log.digest,
    )
    update(client, action, result)
    assert get(client, action) == result
    assert client.read(file.name) == file.data
    assert client.read(log.name) == log.data


def test_what_a_client_sent_inline_is_verified(client: Client) -> None:
    """Design §4, invariant 4: nothing is named before it was compared with its digest."""
    file, action = fresh(100), fresh(100)
    result = pb.ActionResult(
        output_files=[pb.OutputFile(path="f", digest=file.digest, contents=b"something else")]
    )
    with fails(INVALID, file.hash):
        update(client, action, result)
    with fails(NOT_FOUND):
        get(client, action)
    assert client.missing(file) == [file.digest]


# ---- What is malformed

BAD_DIGESTS = {
    "no hash": (pb.Digest(), "''"),
    "too short": (pb.Digest(hash="abc", size_bytes=5), "abc"),
    "capitals": (pb.Digest(hash="A" * 64, size_bytes=5), "A" * 64),
    "another function's": (pb.Digest(hash="a" * 40, size_bytes=5), "a" * 40),
    "negative size": (pb.Digest(hash="a" * 64, size_bytes=-5), "-5"),
}

bad_digests = pytest.mark.parametrize(
    ("digest", "mentioned"), BAD_DIGESTS.values(), ids=BAD_DIGESTS.keys()
)


@bad_digests
def test_a_malformed_action_digest_is_refused(
    client: Client, digest: pb.Digest, mentioned: str
) -> None:
    """Design §5: malformed hashes and sizes are INVALID_ARGUMENT everywhere."""
    with fails(INVALID, mentioned):
        client.get_action_result(pb.GetActionResultRequest(action_digest=digest), timeout=PATIENCE)
    with fails(INVALID, mentioned):
        client.update_action_result(
            pb.UpdateActionResultRequest(action_digest=digest, action_result=pb.ActionResult()),
            timeout=PATIENCE,
        )


def test_a_missing_action_digest_is_refused(client: Client) -> None:
    """UpdateActionResult: INVALID_ARGUMENT if one or more arguments are invalid."""
    with fails(INVALID, "''"):
        client.get_action_result(pb.GetActionResultRequest(), timeout=PATIENCE)
    with fails(INVALID, "''"):
        client.update_action_result(pb.UpdateActionResultRequest(), timeout=PATIENCE)


@bad_digests
@pytest.mark.parametrize("kind", ["output file", "tree", "root", "stdout", "stderr"])
def test_a_malformed_digest_of_an_output_is_refused(
    client: Client, kind: str, digest: pb.Digest, mentioned: str
) -> None:
    """UpdateActionResult: INVALID_ARGUMENT if one or more arguments are invalid."""
    result = {
        "output file": pb.ActionResult(output_files=[pb.OutputFile(path="o", digest=digest)]),
        "tree": pb.ActionResult(
            output_directories=[pb.OutputDirectory(path="o", tree_digest=digest)]
        ),
        "root": pb.ActionResult(
            output_directories=[pb.OutputDirectory(path="o", root_directory_digest=digest)]
        ),
        "stdout": pb.ActionResult(stdout_digest=digest),
        "stderr": pb.ActionResult(stderr_digest=digest),
    }[kind]
    action = fresh(100)
    with fails(INVALID, mentioned):
        update(client, action, result)
    with fails(NOT_FOUND):
        get(client, action)


def test_a_tree_that_is_none_is_refused(client: Client) -> None:
    """OutputDirectory.tree_digest: the digest of an encoded Tree."""
    blob, action = Blob(b"\xff\xff" + fresh(10).data), fresh(100)
    client.put(blob)
    for named in (
        pb.OutputDirectory(path="o", tree_digest=blob.digest),
        pb.OutputDirectory(path="o", root_directory_digest=blob.digest),
    ):
        with fails(INVALID, blob.hash):
            update(client, action, pb.ActionResult(output_directories=[named]))


@pytest.mark.parametrize("instance", ["/", "a/", "..", "a\0b", "actionResults", "x" * 256])
def test_malformed_instances_are_refused(client: Client, instance: str) -> None:
    """REAPI: no segment of an instance name can be a keyword; nor what is unsafe in a path."""
    with fails(INVALID, "instance name"):
        get(client, fresh(10), instance)
    with fails(INVALID, "instance name"):
        update(client, fresh(10), pb.ActionResult(), instance)


@pytest.mark.parametrize("function", [2, 99])
def test_a_function_not_served_is_refused(client: Client, function: int) -> None:
    """GetActionResultRequest.digest_function: one of those that capabilities announce."""
    action = fresh(100)
    with fails(INVALID, str(function), "sha256"):
        get(client, action, digest_function=function)
    request = pb.UpdateActionResultRequest(
        action_digest=action.digest,
        digest_function=function,  # type: ignore[arg-type]
    )
    with fails(INVALID, str(function), "sha256"):
        client.update_action_result(request, timeout=PATIENCE)


def test_bytes_that_are_no_request_are_refused(client: Client) -> None:
    """Malformed messages are the client's fault, and said to be."""
    service = "/build.bazel.remote.execution.v2.ActionCache/"
    for method in ("GetActionResult", "UpdateActionResult"):
        call: Any = client.channel.unary_unary(service + method)
        for raw in (b"\x0a\x05x", b"\xff", b"\x0a\x02\xff\xfe"):
            with fails(INVALID, f"{method}Request"):
                call(raw, timeout=PATIENCE)


def test_a_malformed_result_is_not_stored(client: Client) -> None:
    """UpdateActionResult: INVALID_ARGUMENT if one or more arguments are invalid."""
    action = fresh(100)
    digest = action.digest.SerializeToString()
    head = b"\x12%c%b" % (len(digest), digest)
    call: Any = client.channel.unary_unary(
        "/build.bazel.remote.execution.v2.ActionCache/UpdateActionResult"
    )
    for raw in (b"\x12\x05x", b"\x20", b"\xff\xff", b"\x0b"):
        with fails(INVALID, "UpdateActionResultRequest"):
            call(head + b"\x1a%c%b" % (len(raw), raw), timeout=PATIENCE)
    with fails(NOT_FOUND):
        get(client, action)
