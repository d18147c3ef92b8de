"""How the client checks read what tools and servers say, and end what they start; no tool runs."""

import os
import sys
from pathlib import Path

import pytest

from tests.clients.clientcheck import cli, server
from tests.clients.clientcheck.bazel import Counts, cache_warnings, parse_counts
from tests.clients.clientcheck.bazel_workspace import write_workspace
from tests.clients.clientcheck.buildgrid import same
from tests.clients.clientcheck.check import Bench, Check
from tests.clients.clientcheck.errors import CheckError, NotServed, Skipped
from tests.clients.clientcheck.process import Clock, Daemon, run, wait_for_group
from tests.clients.clientcheck.tools import (
    CLIENTS,
    Tools,
    chosen_clients,
    closed_environment,
    tools_from,
)
from tests.clients.clientcheck.tree import difference, files, make_tree, manifest


@pytest.mark.parametrize(
    ("line", "local", "hits", "other"),
    [
        ("INFO: 226 processes: 90 internal, 136 local.", 136, 0, 0),
        ("INFO: 226 processes: 136 remote cache hit, 90 internal.", 0, 136, 0),
        ("INFO: 76 processes: 76 remote cache hit.", 0, 76, 0),
        ("INFO: 3 processes: 1 remote cache hit, 2 processwrapper-sandbox.", 2, 1, 0),
        ("INFO: 1 process: 1 internal.", 0, 0, 0),
        ("INFO: 4 processes: 3 remote cache hit, 1 remote.", 0, 3, 1),
    ],
)
def test_bazel_summary_is_counted_by_kind(line: str, local: int, hits: int, other: int) -> None:
    output = f"INFO: Found 4 targets...\n{line}\nINFO: Build completed successfully\n"
    assert parse_counts(output) == Counts(local, hits, other, line.removeprefix("INFO: "))


def test_bazel_without_a_summary_is_no_pass() -> None:
    with pytest.raises(CheckError, match="no summary"):
        parse_counts("INFO: Build completed successfully\n")


def test_any_bazel_warning_counts_but_the_one_about_its_bazelrc() -> None:
    unread = "WARNING: The following rc files are no longer being read, please transfer them\n"
    assert cache_warnings(unread + "INFO: 1 process: 1 local.\n") == []
    failed = "WARNING: Reading from Remote Cache:"
    assert cache_warnings(f"{unread}{failed}\nBulkTransferException\n") == [
        failed,
        "BulkTransferException",
    ]


def test_two_workspaces_share_no_seed(tmp_path: Path) -> None:
    one, two = (write_workspace(tmp_path / name, 3) for name in ("one", "two"))
    assert one.seed != two.seed
    assert one.seed in (one.path / "units/seed.h").read_text()
    assert (one.path / "units/BUILD").read_text() == (two.path / "units/BUILD").read_text()


def test_trees_differ_by_content_mode_and_presence(tmp_path: Path) -> None:
    make_tree(tmp_path, 1000)
    before = manifest(tmp_path)
    assert files(before) == 67
    assert difference(before, manifest(tmp_path)) == ""
    (tmp_path / "zero").write_bytes(b"x")
    (tmp_path / "run.sh").chmod(0o644)
    (tmp_path / "hollow").rmdir()
    (tmp_path / "new").symlink_to("zero")
    said = difference(before, manifest(tmp_path))
    assert [line.split(":")[0].split()[-1] for line in said.splitlines()] == [
        "hollow",
        "new",
        "run.sh",
        "zero",
    ]


@pytest.mark.parametrize("spoil", ["content", "executable", "directory"])
def test_a_received_tree_that_differs_is_not_served(tmp_path: Path, spoil: str) -> None:
    make_tree(tmp_path, 1000)
    sent = manifest(tmp_path)
    (tmp_path / "one").chmod(0o700)  # not kept by REAPI
    same(sent, tmp_path)
    match spoil:
        case "content":
            (tmp_path / "one/two/same-2").write_bytes(os.urandom(5000))
        case "executable":
            (tmp_path / "run.sh").chmod(0o644)
        case "directory":
            (tmp_path / "hollow").rmdir()
    with pytest.raises(NotServed, match="not what was sent"):
        same(sent, tmp_path)


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ('{"level": "error", "event": "worker failed"}', True),
        ('{"level": "critical", "event": "out of disk"}', True),
        ('{"level": "info", "event": "ERROR is but a word here"}', False),
        ("2026-01-01T00:00:00.000Z ERROR   worker failed", True),
        ("2026-01-01T00:00:00.000Z INFO    serving", False),
        ("Traceback (most recent call last):", True),
        ("E0000 00:00:1700000000.000000   12 chttp2_server.cc:1] no port", True),
        ("I0000 00:00:1700000000.000000   12 chttp2_server.cc:1] fine", False),
    ],
)
def test_error_lines_of_a_server_log(line: str, wrong: bool) -> None:
    assert server.error_lines(line) == ([line] if wrong else [])


def test_clients_come_from_arguments_then_environment_then_all() -> None:
    assert chosen_clients(["moon"], {"CLIENTS": "casd"}) == ("moon",)
    assert chosen_clients([], {"CLIENTS": "casd,bazel4"}) == ("bazel4", "casd")
    assert chosen_clients([], {}) == CLIENTS
    with pytest.raises(ValueError, match=r"'bazel9'.*bazel4"):
        chosen_clients(["bazel9"], {})


def test_tools_directory() -> None:
    assert tools_from({"CAS_CLIENTS_DIR": "/a", "XDG_CACHE_HOME": "/b"}) == Tools(Path("/a"))
    assert tools_from({"XDG_CACHE_HOME": "/b"}) == Tools(Path("/b/cas-clients"))


def test_a_program_past_its_time_is_killed_with_what_it_started(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    with pytest.raises(CheckError, match="still running"):
        run(
            ["sh", "-c", f"sleep 60 & echo $$ $! > {pids}; wait"],
            cwd=tmp_path,
            env=closed_environment(tmp_path),
            log=tmp_path / "log",
            clock=Clock.of(1),
        )
    leader, _ = pids.read_text().split()
    assert wait_for_group(int(leader), 10)


@pytest.mark.parametrize(
    ("before", "after", "wrong"),
    [
        ("", "", ""),
        ("", "sys.exit(3)", "exited with 3"),
        ("", "signal.pthread_sigmask(signal.SIG_UNBLOCK, every); signal.pause()", "left"),
        ("subprocess.Popen(['sleep', '60'])", "", "left processes behind"),
    ],
)
def test_how_a_server_ends_is_judged(
    tmp_path: Path, before: str, after: str, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = f"""
import signal, subprocess, sys
every = [signal.SIGTERM]
signal.pthread_sigmask(signal.SIG_BLOCK, every)
{before}
print("ready", file=sys.stderr, flush=True)
signal.sigwait(every)
{after}
"""
    monkeypatch.setattr(server, "STOP_SECONDS", 2)
    log = tmp_path / "log"
    argv = [sys.executable, "-c", program]
    daemon = Daemon.start("it", argv, env=closed_environment(tmp_path), log=log)
    clock = Clock.of(20)
    while "ready" not in log.read_text():
        daemon.check_alive()
        clock.left()
    said = server.stop(server.CasServer(daemon, "127.0.0.1:1", "none"))
    assert len(said) == bool(wrong)
    assert wrong in "".join(said)
    assert wait_for_group(daemon.process.pid, 10)


def _raise(error: Exception) -> str:
    raise error


@pytest.mark.parametrize(
    ("error", "plain", "proving"),
    [
        (None, True, False),
        (NotServed("no hits"), False, True),
        (CheckError("it broke"), False, False),
        (OSError("no such tool"), False, False),
        (Skipped("not for this server"), None, None),
    ],
)
def test_prove_mode_passes_only_what_was_not_served(
    tmp_path: Path, error: Exception | None, plain: bool | None, proving: bool | None
) -> None:
    check = Check("it", "moon", 1, lambda bench: _raise(error) if error else "served")
    bench = Bench(tmp_path, "", "", Tools(tmp_path), Clock.of(1))
    assert cli._verdict(check, bench, prove=False) is plain
    assert cli._verdict(check, bench, prove=True) is proving


@pytest.mark.parametrize(
    "arguments", [["bazel9"], ["--empty", "127.0.0.1:1"], ["--prove", "--remote", "127.0.0.1:1"]]
)
def test_wrong_arguments_are_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    assert capsys.readouterr().err.startswith("tests/clients/run: ")
