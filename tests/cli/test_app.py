"""The command line from outside: exit codes, and what is said."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cas import config

ROOT = Path(__file__).resolve().parents[2]


def cas(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Runs the command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "cas", *arguments],
        cwd=ROOT,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["serve", "--max-blobsize", "10GiB"],
            "unknown option --max-blobsize; did you mean --max-blob-size",
        ),
        (["serve", "--worker=3"], "unknown option --worker; did you mean --workers?"),
        (["serve", "--zebra", "3"], "unknown option --zebra"),
        (["serve", "--workers", "x"], "--workers: 'x' is not a whole number from 0 to 1024"),
        (["serve", "--workers", "-1"], "--workers: '-1' is not a whole number from 0 to 1024"),
        (["serve", "--workers"], "--workers: expected one argument"),
        (["serve", "--grpc", "8980"], "--grpc: '8980' is not an address: host:port, "),
        (["serve", "--http", "8080"], "--http: '8080' is not an address: host:port, "),
        (["serve", "--config", "/nowhere.toml"], "cannot read configuration /nowhere.toml: No "),
        (["serve", "somewhere"], "unexpected argument 'somewhere'"),
        (["srve"], "COMMAND: invalid choice: 'srve'"),
        ([], "the following arguments are required: COMMAND"),
        (["--zebra", "serve"], "unknown option --zebra"),
    ],
)
def test_a_wrong_option_is_one_line_and_exit_code_2(arguments: list[str], said: str) -> None:
    ended = cas(*arguments)
    assert ended.returncode == 2
    assert ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"cas: {said}")


def test_a_wrong_variable_or_file_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    ended = cas("serve", CAS_DURABILITY="safe")
    assert ended.returncode == 2
    assert ended.stderr == "cas: CAS_DURABILITY: 'safe' is not one of strict, batch, none\n"

    file = tmp_path / "cas.toml"
    file.write_text("durabilty = 'batch'\n")
    ended = cas("serve", CAS_CONFIG=str(file))
    assert ended.returncode == 2
    assert ended.stderr == f"cas: {file}: unknown key 'durabilty'; did you mean durability?\n"


def test_help_names_every_option_and_its_default() -> None:
    ended = cas("serve", "--help", COLUMNS="500")
    assert ended.returncode == 0
    assert ended.stderr == ""
    words = " ".join(ended.stdout.partition("options:")[2].split())
    for option in config.options():
        value = option.kind.placeholder if option.kind.bare is None else "[true|false]"
        assert f"{option.flag} {value} {option.help} (default: {option.default_text})" in words


def test_help_and_version_are_there() -> None:
    assert "serve" in cas("--help").stdout
    version = cas("--version")
    assert version.returncode == 0
    assert version.stdout.startswith("cas ")


def test_what_the_supervisor_imports_is_light() -> None:
    script = (
        "import sys; import cas.cli; "
        "print(*(m for m in ('grpc', 'lmdb', 'google.protobuf', 'asyncio') if m in sys.modules))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert ended.stdout.strip() == ""
