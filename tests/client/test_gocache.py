"""Go's GOCACHEPROG protocol, spoken as the go command speaks it."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cas.client.client import AsyncClient
from cas.client.gocache import KEPT_SECONDS, Disk, Entry, Program, _read
from cas.client.retry import Retry
from tests.conformance.serving import Server

FEW = Retry(attempts=2, first=0.01, longest=0.01)


def text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def put(number: int, action: bytes, output: bytes, body: bytes) -> bytes:
    request: dict[str, Any] = {"ID": number, "Command": "put", "ActionID": text(action)}
    request |= {"OutputID": text(output)}
    if not body:
        return json.dumps(request).encode() + b"\n"
    request["BodySize"] = len(body)
    return json.dumps(request).encode() + b'\n\n"' + base64.b64encode(body) + b'"\n'


def get(number: int, action: bytes) -> bytes:
    request = {"ID": number, "Command": "get", "ActionID": text(action)}
    return json.dumps(request).encode() + b"\n"


CLOSE = b'{"ID":99,"Command":"close"}\n'


def talk(url: str, directory: Path, *requests: bytes) -> tuple[dict[int, Any], Program]:
    """What is answered, by number, and the program afterwards."""
    answers: list[bytes] = []

    async def run() -> Program:
        async with AsyncClient(url, retry=FEW) as client:
            source = io.BytesIO(b"".join(requests))
            program = Program(client, Disk(directory), source, answers.append)
            await program.run()
            return program

    program = asyncio.run(run())
    assert all(line.endswith(b"\n") for line in answers)
    said = [json.loads(line) for line in answers]
    assert said[0] == {"ID": 0, "KnownCommands": ["get", "put", "close"]}
    return {one.pop("ID"): one for one in said[1:]}, program


@pytest.fixture
def instance(server: Server) -> str:
    return f"grpc://{server.address}/{uuid.uuid4()}"


BODIES = [b"", b"x", os.urandom(100_000), os.urandom(3 << 20)]


def test_what_one_machine_built_another_finds(instance: str, tmp_path: Path) -> None:
    actions = [os.urandom(32) for _ in BODIES]
    outputs = [os.urandom(32) for _ in BODIES]
    puts = [put(n, actions[n], outputs[n], body) for n, body in enumerate(BODIES, 0)]
    first, program = talk(instance, tmp_path / "one", *puts, CLOSE)
    assert program.counts.uploaded == len(BODIES)
    assert first[99] == {}
    for number, body in enumerate(BODIES):
        assert Path(first[number]["DiskPath"]).read_bytes() == body

    gets = [get(n, action) for n, action in enumerate(actions)]
    second, program = talk(instance, tmp_path / "two", *gets, get(50, os.urandom(32)), CLOSE)
    assert second[50] == {"Miss": True}
    assert program.counts.remote == len(BODIES)
    for number, body in enumerate(BODIES):
        answer = second[number]
        assert base64.b64decode(answer["OutputID"]) == outputs[number]
        assert answer["Size"] == len(body)
        path = Path(answer["DiskPath"])
        assert path.is_relative_to(tmp_path / "two")
        assert path.read_bytes() == body

    third, program = talk(instance, tmp_path / "two", *gets, CLOSE)
    assert program.counts.local == len(BODIES)
    assert {n: third[n]["DiskPath"] for n in range(len(BODIES))} == {
        n: second[n]["DiskPath"] for n in range(len(BODIES))
    }


def test_a_dead_remote_is_a_miss_and_builds_go_on(tmp_path: Path) -> None:
    action, output = os.urandom(32), os.urandom(32)
    said, program = talk(
        "http://127.0.0.1:1", tmp_path, get(1, action), put(2, action, output, b"x"), CLOSE
    )
    assert said[1] == {"Miss": True}
    assert Path(said[2]["DiskPath"]).read_bytes() == b"x"
    assert program.counts.failed
    again, _ = talk("http://127.0.0.1:1", tmp_path, get(1, action), CLOSE)
    assert again[1]["Size"] == 1


def test_the_end_of_input_is_an_end_and_an_unknown_command_an_error(
    instance: str, tmp_path: Path
) -> None:
    said, _ = talk(instance, tmp_path, b'{"ID":1,"Command":"get2"}\n')
    assert said == {1: {"Err": "command 'get2' is not known"}}


@given(st.binary(max_size=200), st.integers(1, 2**40))
def test_a_body_is_read_as_go_writes_it(body: bytes, number: int) -> None:
    source = io.BytesIO(put(number, b"a", b"o", body) + CLOSE)
    request = _read(source)
    assert request is not None
    assert (request["ID"], request["Body"]) == (number, body)
    close = _read(source)
    assert close is not None
    assert close["Command"] == "close"
    assert _read(source) is None


def test_damaged_and_unused_files_go(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    entry = Entry("cd" * 32, 3, 1.0)
    disk.put("ab" * 32, entry, b"abc")
    assert disk.find("ab" * 32) == entry
    disk.data(entry.output).write_bytes(b"cut")
    os.truncate(disk.data(entry.output), 1)
    assert disk.find("ab" * 32) is None
    disk.put("ab" * 32, entry, b"abc")
    assert disk.data(entry.output).read_bytes() == b"abc"
    disk.trim()
    assert disk.find("ab" * 32) == entry
    old = time.time() - KEPT_SECONDS - 60
    for path in (*tmp_path.glob("??/*"), tmp_path / "trimmed"):
        os.utime(path, (old, old))
    disk.trim()
    assert list(tmp_path.glob("??/*")) == []
