"""BuildGrid's command line client: a tree up and down again by its root digest, and an action
result there and back.

It speaks GetCapabilities, FindMissingBlobs, the batch calls, ByteStream, GetTree and the action
cache. It sends no symbolic links. `upload` and `download` also serve as the client that drives
buildbox-casd.
"""

import hashlib
import os
import re
import shutil
from pathlib import Path

from .check import Bench, Check
from .errors import CheckError, NotServed
from .probe import missing
from .process import Finished, last_lines, must, run
from .tools import closed_environment
from .tree import Entry, difference, files, make_tree, manifest

BIG = 6_000_001
"""Bytes of the largest file sent: more than fits a batch call, so that it goes by ByteStream."""


def bgd(bench: Bench, address: str, instance: str, group: str, *words: str | Path) -> Finished:
    """Runs `bgd GROUP WORDS` against a server."""
    argv = [
        bench.tools.bgd,
        group,
        f"--remote=http://{address}",
        f"--instance-name={instance}",
        *words,
    ]
    return run(
        argv,
        cwd=bench.work,
        env=closed_environment(bench.work),
        log=bench.work / "bgd.log",
        clock=bench.clock,
    )


def upload(bench: Bench, address: str, instance: str, tree: Path) -> str:
    """Uploads a directory; returns its root digest as HASH/SIZE."""
    done = must(
        bgd(bench, address, instance, "cas", "upload-dir", "--verify", tree), "bgd cas upload-dir"
    )
    pushed = re.findall(
        r"^Success: Pushed path=\[(.*)\] with digest=\[([0-9a-f]{64}/\d+)\]$",
        done.output,
        re.MULTILINE,
    )
    if not pushed or Path(pushed[-1][0]).name != tree.name or "Error" in done.output:
        raise CheckError(
            f"bgd cas upload-dir did not name the digest of {tree.name}\n{last_lines(done.output)}"
        )
    return str(pushed[-1][1])


def download(bench: Bench, address: str, instance: str, digest: str, into: Path) -> Finished:
    """Downloads the directory `digest` into a path that must not exist. Raises NotServed if it
    can't be had.
    """
    done = bgd(bench, address, instance, "cas", "download-dir", "--verify", digest, into)
    if done.code != 0 or "Success: Pulled" not in done.output or "Error" in done.output:
        raise NotServed(f"bgd cas download-dir got no {digest}\n{last_lines(done.output, 6)}")
    return done


def same(sent: dict[str, Entry], received: Path) -> None:
    """Raises NotServed unless what was received is what was sent: paths, bytes, directories and
    executable bits.
    """
    differs = difference(_as_reapi_keeps_it(sent), _as_reapi_keeps_it(manifest(received)))
    if differs:
        raise NotServed(f"what came back is not what was sent:\n{differs}")


def expect_missing(address: str, instance: str, sent: dict[str, Entry], expected: bool) -> None:
    """Raises CheckError unless the server, asked directly, lacks all non-empty files sent, or
    none of them.
    """
    lacks = missing(address, instance, sent.values())
    hashes = {entry.content for entry in sent.values() if entry.kind == "file" and entry.size}
    if lacks != (hashes if expected else set()):
        words = f"{len(lacks)} of {len(hashes)} blobs, expected {'all' if expected else 'none'}"
        raise CheckError(f"the server lacks {words}")


def _as_reapi_keeps_it(entries: dict[str, Entry]) -> dict[str, Entry]:
    """REAPI keeps one bit of a file's mode, whether it is executable, and none of a directory's."""
    return {
        path: Entry(
            entry.kind, entry.content, entry.size, entry.mode & 0o100 if entry.kind == "file" else 0
        )
        for path, entry in entries.items()
    }


def _check(bench: Bench, instance: str) -> str:
    tree = bench.work / "tree"
    make_tree(tree, BIG)
    sent = manifest(tree)
    must(bgd(bench, bench.fills, instance, "capabilities"), "bgd capabilities")
    expect_missing(bench.fills, instance, sent, True)
    digest = upload(bench, bench.fills, instance, tree)
    expect_missing(bench.fills, instance, sent, False)
    if upload(bench, bench.fills, instance, tree) != digest:
        raise CheckError("a second upload of the same tree gave another digest")
    shutil.rmtree(tree)
    done = download(bench, bench.served_by, instance, digest, bench.work / "received")
    same(sent, bench.work / "received")
    _action_result(bench, instance, sent)
    return (
        f"{files(sent)} files served and identical in {done.seconds:.1f} s, 1 action result served"
    )


def _action_result(bench: Bench, instance: str, sent: dict[str, Entry]) -> None:
    """An action result that names an uploaded file: a miss before it is put, a hit with the same
    bytes after.
    """
    from google.protobuf import json_format

    from cas.pb import remote_execution_pb2 as pb

    big, said = sent["one/two/three/four/big"], sent["same-1"]
    result = pb.ActionResult(stdout_digest=pb.Digest(hash=said.content, size_bytes=said.size))
    result.output_files.add(
        path="out/big", is_executable=True, digest=pb.Digest(hash=big.content, size_bytes=big.size)
    )
    data = result.SerializeToString()
    message = bench.work / "action-result"
    message.write_bytes(data)
    result_digest = f"{hashlib.sha256(data).hexdigest()}/{len(data)}"
    action = os.urandom(142)
    action_digest = f"{hashlib.sha256(action).hexdigest()}/{len(action)}"

    must(
        bgd(bench, bench.fills, instance, "cas", "upload-file", "--verify", message),
        "bgd cas upload-file",
    )
    before = must(
        bgd(bench, bench.fills, instance, "actioncache", "get", action_digest),
        "bgd actioncache get",
    )
    if "Miss:" not in before.output:
        raise CheckError(f"a new action should be a miss\n{last_lines(before.output)}")
    must(
        bgd(bench, bench.fills, instance, "actioncache", "update", action_digest, result_digest),
        "bgd actioncache update",
    )
    after = must(
        bgd(bench, bench.served_by, instance, "actioncache", "get", "--json", action_digest),
        "bgd actioncache get",
    )
    if "Miss:" in after.output:
        raise NotServed("an action result that was put is a miss")
    received = json_format.Parse(after.output, pb.ActionResult())
    # Who stored it is for a server to fill in.
    received.ClearField("execution_metadata")
    if received != result:
        raise NotServed(
            f"the action result did not come back as it was\n{last_lines(after.output)}"
        )


CHECKS = (
    Check("buildgrid", "buildgrid", 90, lambda bench: _check(bench, "")),
    Check("buildgrid[a/b]", "buildgrid", 90, lambda bench: _check(bench, "a/b")),
)
