"""The environment that grpc is imported in."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from cas.rpc import environment


def run(code: str, variables: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"GRPC_VERBOSITY": "INFO", **variables},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout + done.stderr


SERVE = """
import grpc
channel = grpc.insecure_channel("127.0.0.1:9")
channel.close()
"""


def test_grpc_is_not_imported() -> None:
    code = "import sys; from cas.rpc import environment; print(environment.variables())"
    assert run(f"{code}; assert 'grpc' not in sys.modules", {})


def test_grpc_knows_what_is_set() -> None:
    variables = environment.variables()
    assert "unknown experiment" not in run(SERVE, variables).lower()
    # So that its silence says something.
    unheard_of = {"GRPC_EXPERIMENTS": "-no_such_experiment"}
    assert "unknown experiment" in run(SERVE, unheard_of).lower()


def test_an_experiment_of_another_version_is_not_set(tmp_path: Path) -> None:
    library = tmp_path / "cygrpc.so"
    library.write_bytes(b"\x7fELF\0event_engine_client\0my_event_engine_listener\0")
    assert environment._knows(library, "event_engine_client")
    assert not environment._knows(library, "event_engine_listener")
