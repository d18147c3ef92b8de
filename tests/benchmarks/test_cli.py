"""The command line: what it refuses, what it leaves out, what it keeps."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from benchmarks import cli, report, results
from tests.benchmarks.test_report import DATA, section, table_section


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sections", "table,tables"], "'tables' is none of"),
        (["--peers", "ours"], "'ours' is none of"),
        (["--workloads", "read"], "'read' is not written as"),
        (["--concurrency", "0"], "--concurrency"),
        (["--large-size", "many"], "size 'many'"),
        (["--generator", "casload"], "CASLOAD"),
        (["--check-generator"], "CASLOAD"),
        (["--rounds", "0"], "must be positive"),
        (["--markdown", "x.md"], "--markdown needs --json"),
    ],
)
def test_wrong_options_exit_2_and_name_it(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments, {})
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def options(*arguments: str, environ: dict[str, str] | None = None) -> argparse.Namespace:
    return cli.parser(environ or {}).parse_args(arguments)


def test_paths_come_from_flags_or_the_environment() -> None:
    found = options("--nativelink", "/x/nl", environ={"BAZEL_REMOTE": "/x/br", "NATIVELINK": "/y"})
    assert (found.bazel_remote, found.nativelink) == (Path("/x/br"), Path("/x/nl"))
    assert found.casload is None


def test_a_peer_without_a_path_is_left_out_and_named_only_if_asked_for() -> None:
    lines: list[str] = []
    given = options("--peers", "bazel-remote,bazel-remote-zstd,nativelink", "--nativelink", "/nl")
    assert [kind.name for kind in cli.peers(given, lines.append)] == ["nativelink"]
    assert [line.split()[0] for line in lines] == ["bazel-remote", "bazel-remote-zstd"]


def test_by_default_peers_are_those_with_a_path() -> None:
    lines: list[str] = []
    given = options(
        *("--bazel-remote", "/br", "--buildbox-casd", "/casd", "--buildgrid", "/venv/bin/bgd")
    )
    found = cli.peers(given, lines.append)
    assert [kind.name for kind in found] == ["bazel-remote", "buildbox-casd", "buildgrid"]
    assert lines == []
    assert cli.peers(options("--peers", "none"), lines.append) == []


def test_every_worker_count_is_a_server_of_ours() -> None:
    found = cli.ours(options("--workers", "1,2", "--serve-args", "--engine aio"))
    assert [kind.name for kind in found] == ["cas", "cas-w2"]
    command = list(found[1].command(Path("/d"), 0))
    assert command[command.index("--workers") + 1] == "2"
    assert command[-2:] == ["--engine", "aio"]


def test_rendering_measures_nothing_and_keeps_the_results(tmp_path: Path) -> None:
    path, markdown = tmp_path / "results.json", tmp_path / "RESULTS.md"
    found = {
        "format": 1,
        "sections": {"table": table_section(), "idle": section(DATA["idle"])},
    }
    results.save(path, found)
    before = path.read_bytes()
    assert cli.main(["--render", "--json", str(path), "--markdown", str(markdown)], {}) == 0
    assert path.read_bytes() == before
    assert markdown.read_text() == report.render(found, "RESULTS.svg")
    assert (tmp_path / "RESULTS.svg").read_text().startswith("<svg")


def test_nothing_to_measure_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--no-ours", "--peers", "none"], {}) == 1
    assert "no server to measure" in capsys.readouterr().err
