"""The client's commands, run as `main` runs them, against a server of their own."""

from __future__ import annotations

import gc
import io
import json
import os
import re
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cas.cli import app, display, main
from cas.client.progress import Progress
from tests.client import trees
from tests.conformance.serving import Server

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("commands")
    server = Server(
        directory / "store",
        directory / "log",
        *("--grpc", "127.0.0.1:0", "--http", "none", "--workers", "1"),
    )
    yield server
    server.stop()


class Run:
    """Runs commands: their exit code; `out` and `err` are what the last one said."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self._capture = capture
        self.out = self.err = ""

    def __call__(self, *arguments: str) -> int:
        self._capture.readouterr()
        code = main(arguments)
        self.out, self.err = self._capture.readouterr()
        return code

    def json(self, *arguments: str) -> dict[str, Any]:
        self(*arguments, "--json")
        said: dict[str, Any] = json.loads(self.out)
        return said


@pytest.fixture
def cas(
    server: Server,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Run]:
    """In an empty working directory, with a home and caches of its own."""
    for variable in [name for name in os.environ if name.startswith(("CAS_", "GITHUB_"))]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("CAS_REMOTE", f"grpc://{server.address}/{tmp_path.name}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("xdg")))
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
    monkeypatch.chdir(tmp_path)
    threshold = gc.get_threshold()
    yield Run(capsys)
    gc.set_threshold(*threshold)


def test_put_has_and_get(cas: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"content of a")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"piped")))
    assert cas("put", "a", "-") == 0
    digest, piped = cas.out.splitlines()
    assert digest.endswith("/12")
    assert piped.endswith("/5")
    assert cas.json("put", "a")["sent_blobs"] == 0

    assert cas("has", digest, piped) == 0
    assert cas.out == ""
    absent = "0" * 64 + "/7"
    assert cas("has", digest, absent) == 3
    assert cas.out == f"{absent}\n"
    assert cas.json("has", digest, absent) == {"missing": [absent], "present": [digest]}

    assert cas("get", digest, "-o", "b") == 0
    assert (tmp_path / "b").read_bytes() == b"content of a"
    assert cas("get", piped) == 0
    assert cas.out == "piped"
    assert cas("get", absent, "-o", "c") == 3
    assert absent in cas.err
    assert "evicted" in cas.err
    assert not (tmp_path / "c").exists()


def test_digest_functions(cas: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"content of a")
    trees.make(tmp_path / "in")
    assert cas("put", "--digest-function", "BLAKE3", "a") == 0
    digest = cas.out.strip()
    assert digest.startswith("blake3/")
    assert cas("get", digest, "-o", "b") == 0
    assert (tmp_path / "b").read_bytes() == b"content of a"
    assert cas("doctor", "--mib", "1", "--digest-function", "sha1") == 1
    assert "does not take sha1 digests" in cas.out
    monkeypatch.setenv("CAS_REMOTE_DIGEST_FUNCTION", "blake3")
    assert cas("put", "a") == 0
    assert cas.out.strip() == digest
    assert cas("push", "in") == 0
    root = cas.out.strip()
    assert root.startswith("blake3/")
    assert cas("pull", root, "out") == 0
    assert trees.read(tmp_path / "out") == trees.read(tmp_path / "in")
    assert cas("put", "a", "--digest-function", "crc32") == 1
    assert "'crc32' is no digest function" in cas.err


def test_push_and_pull(cas: Run, tmp_path: Path) -> None:
    trees.make(tmp_path / "in")
    (tmp_path / "in" / ".casignore").write_text("/large\n")
    assert cas("push", "in") == 0
    digest = cas.out.strip()
    assert "10 files" not in cas.err
    assert "9 files" in cas.err
    again = cas.json("push", "in")
    assert (again["digest"], again["sent_blobs"], again["sent_bytes"]) == (digest, 0, 0)

    assert cas("pull", digest, "out") == 0
    expected = trees.read(tmp_path / "in")
    del expected["large"]
    assert trees.read(tmp_path / "out") == expected
    (tmp_path / "out" / "mine").write_text("x")
    assert cas.json("pull", digest, "out")["removed"] == 0
    assert cas.json("pull", digest, "out", "--delete", "--links", "hard")["removed"] == 1
    assert trees.read(tmp_path / "out") == expected
    assert cas("pull", "0" * 64 + "/7", "out") == 3


def test_save_and_restore(cas: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = tmp_path / "github"
    monkeypatch.setenv("GITHUB_OUTPUT", str(outputs))
    (tmp_path / "lock").write_text("1")
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("first")
    assert cas("restore", "pip", "--key-files", "lock", "--fallback", "pip-") == 3
    assert "nothing saved under pip-" in cas.err
    assert cas("save", "pip", "--key-files", "lock", "kept") == 0
    key = cas.out.strip()
    assert key.startswith("pip-")
    assert len(key) == 4 + 32
    assert cas.json("save", "pip", "--key-files", "lock", "kept")["saved"] is False
    said = outputs.read_text().splitlines()
    assert said == [
        *("cache-hit=false", "cache-matched-key=", f"cache-primary-key={key}"),
        *(f"cache-key={key}", "cache-saved=true"),
        *(f"cache-key={key}", "cache-saved=false"),
    ]

    (tmp_path / "kept" / "file").write_text("spoilt")
    assert cas("restore", "pip", "--key-files", "lock") == 0
    assert cas.out == f"{key}\n"
    assert (tmp_path / "kept" / "file").read_text() == "first"
    (tmp_path / "lock").write_text("2")
    found = cas.json("restore", "pip", "--key-files", "lock", "--fallback", "pip-", "--into", "x")
    assert (found["matched"], found["exact"], found["files"]) == (key, False, 1)
    assert (tmp_path / "x" / "kept" / "file").read_text() == "first"
    assert outputs.read_text().splitlines()[-3:-1] == [
        "cache-hit=false",
        f"cache-matched-key={key}",
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["get", "abc"], 2, "'abc' is not a digest; expected HASH/SIZE"),
        (["has", "--remote", "cache:80", "0" * 64 + "/1"], 2, "expected grpc://HOST"),
        (["push", "nowhere"], 1, "nowhere: No such file"),
        (["push", "--remot", "x", "."], 2, "unknown option --remot; did you mean --remote?"),
        (["save", "k", "nowhere"], 1, "none of nowhere exists; nothing was saved"),
        (["save", "k", "/etc"], 1, "start cas there or in a directory above"),
        (["put", "."], 2, ". is a directory; `cas push` stores those"),
        (["save", "k", "x", "--key-files", "no*"], 1, "no file matches 'no*'"),
        (["put", "x", "--ca", "/nowhere.pem"], 2, "cannot read /nowhere.pem"),
        (["put", "x", "--cert", "/dev/null"], 2, "--cert and --key belong together"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    cas: Run, arguments: list[str], code: int, said: str
) -> None:
    assert cas(*arguments) == code
    (line,) = cas.err.splitlines()
    assert line.startswith("cas: ")
    assert said in line


def test_a_remote_must_be_named(cas: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CAS_REMOTE")
    assert cas("push", ".") == 2
    assert "give --remote URL or set CAS_REMOTE" in cas.err


def test_a_dead_remote_says_what_to_do(cas: Run, tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "cas", "has", "--remote", "http://127.0.0.1:1", "0" * 64 + "/1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert "`cas doctor --remote http://127.0.0.1:1` looks closer" in line


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_knows_the_commands(cas: Run, shell: str) -> None:
    assert cas("completion", shell) == 0
    for word in ("push", "restore", "serve", "fallback"):
        assert word in cas.out
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=cas.out, text=True, check=True, timeout=30)


def test_progress_without_a_terminal_is_a_line() -> None:
    progress = Progress("pushing", total=40 << 20, done=12 << 20, files=9, files_done=3)
    assert display.line(progress, 2.0) == (
        "pushing: 12 of 40 MiB, 3 of 9 files, 6.0 MiB/s, 5 s left"
    )
    assert display.line(Progress("x"), 0.0) == "x: 0 of 0 MiB, 0 of 0 files, 0.0 MiB/s"


def test_progress_on_a_terminal_is_a_bar(cas: Run, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(os.urandom(30 << 20))
    controller, terminal = os.openpty()
    termios.tcsetwinsize(terminal, (25, 100))
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "cas", "put", str(tmp_path / "big")],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=terminal,
            timeout=60,
            check=True,
        )
        os.set_blocking(controller, False)
        shown = os.read(controller, 1 << 16).decode()
    finally:
        os.close(controller)
        os.close(terminal)
    assert ended.stdout.decode().strip().endswith(f"/{30 << 20}")
    assert "putting:" in shown
    assert "files" in shown


def test_doctor(cas: Run) -> None:
    assert cas("doctor", "--mib", "1") == 0
    assert "ok       round trip:" in cas.out
    assert cas.out.splitlines()[-1].startswith("all is well with grpc://")
    said = cas.json("doctor", "--remote", "grpc://127.0.0.1:1")
    assert said["well"] is False
    assert said["checks"][0]["advice"]


def test_gocacheprog_speaks_first_and_ends_with_its_input(cas: Run) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "cas", "gocacheprog", "--verbose"],
        cwd=ROOT,
        input='{"ID":1,"Command":"get","ActionID":"AAAA"}\n{"ID":2,"Command":"close"}\n',
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    lines = [json.loads(line) for line in ended.stdout.splitlines()]
    assert lines == [
        {"ID": 0, "KnownCommands": ["get", "put", "close"]},
        {"ID": 1, "Miss": True},
        {"ID": 2},
    ]
    assert "1 asked, 0 here, 0 from the remote" in ended.stderr


@pytest.mark.parametrize(
    "file", ["github-actions.yml", "gitlab-ci.yml", "buildkite.yml", "Jenkinsfile", "README.md"]
)
def test_examples_use_options_that_exist(file: str) -> None:
    text = (ROOT / "deploy" / "ci" / file).read_text()
    assert "cas restore" in text
    assert "cas save" in text
    known = app.parser().parse_args(["restore", "key"]).flags
    assert {"--key-files", "--fallback"} <= set(re.findall(r"--[a-z][a-z-]+", text)) <= set(known)
